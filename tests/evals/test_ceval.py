"""C-Eval: the prompt in Chinese, its own mapping file, the split that has answers."""

from pathlib import Path

import pytest

from llmbench import evals
from llmbench.errors import InputError
from llmbench.evals import Options, Reply
from llmbench.evals._ceval_subjects import SUBJECTS
from llmbench.evals._choices import HARD
from tests.contracts.test_evals import SAMPLES

EVALUATION = evals.get("ceval", Options(count_tokens=len))
PROMPT = """以下是中国关于逻辑学考试的单项选择题，请选出其中的正确答案。

一加一等于几？
A. 一
B. 二
C. 三
D. 四
答案：B

哪个是红色的？
A. 天空
B. 草地
C. 番茄
D. 雪
答案：C

哪个会飞？
A. 鸟
B. 石头
C. 鱼
D. 树
答案：A

今天之后是哪一天？
A. 昨天
B. 前天
C. 今天
D. 明天
答案：D

水在冬天会怎样？
A. 结冰
B. 燃烧
C. 发光
D. 唱歌
答案：A

如果所有猫都睡觉, 那么我的猫呢？
A. 睡觉
B. 不睡
C. 跑步
D. 读书
答案："""  # noqa: RUF001


def test_the_prompt_is_the_sets_own() -> None:
    first, second = EVALUATION.items(SAMPLES / "ceval")
    assert first.asks[0].prompt == PROMPT
    assert (first.group, first.category, first.truth, second.truth) == ("logic", "Humanities", "A", "B")


def test_there_are_52_subjects_and_the_hard_ones_are_among_them() -> None:
    assert len(SUBJECTS) == 52
    assert SUBJECTS.keys() >= HARD
    assert {category for _, category in SUBJECTS.values()} == {"STEM", "Social Science", "Humanities", "Other"}


def test_a_letter_behind_chinese_text_is_the_answer() -> None:
    item = EVALUATION.items(SAMPLES / "ceval")[0]
    assert EVALUATION.mark(item, [Reply(text="应该选A。")]).correct


def test_the_sets_own_mapping_wins(tmp_path: Path) -> None:
    for split in ("dev", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"logic_{split}.csv").write_bytes(
            (SAMPLES / "ceval" / split / f"logic_{split}.csv").read_bytes()
        )
    (tmp_path / "subject_mapping.json").write_text('{"logic": ["Logic", "推理", "STEM"]}')
    item = EVALUATION.items(tmp_path)[0]
    assert item.category == "STEM"
    assert "关于推理考试" in item.asks[0].prompt


def test_a_file_without_answers_is_refused(tmp_path: Path) -> None:
    for split in ("dev", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"logic_{split}.csv").write_text("id,question,A,B,C,D\n0,q,a,b,c,d\n")
    with pytest.raises(InputError, match=r"val/logic_val\.csv: the first row names no column 'answer'"):
        EVALUATION.items(tmp_path)


def test_a_row_that_is_too_short_is_refused_with_its_number(tmp_path: Path) -> None:
    for split in ("dev", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"logic_{split}.csv").write_text("id,question,A,B,C,D,answer\n0,q,a,b,c,d\n")
    with pytest.raises(InputError, match="row 2 has 6 columns instead of 7"):
        EVALUATION.items(tmp_path)
