"""Task evaluations such as MMLU, one file each."""
