/* A server whose emission times are known exactly, cheaper than any client that is measured against it.
 *
 *     gcc -O2 -o oracle oracle.c && ./oracle TTFT_US GAP_US        prints its port
 *
 * One thread, epoll, absolute instants in a heap, one send() for each token, stamped (CLOCK_MONOTONIC) immediately
 * before it. A token's text is its stamp, as the null server of llmbench.loadgen writes it:
 *     " R<request read> <sent>"  " <sent>"  " <sent>" ...       each number in 19 digits
 * POST /v1/completions, /v1/chat/completions (streams with [DONE], usage if stream_options asks for it; or whole)
 * GET  /v1/models, /health
 * GET  /dump     one line for each request since the last dump: when it was read, when each token was sent, in ns
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 65536
#define IN_A_ROW 64 /* tokens sent before sockets are looked at */

typedef struct {
    int64_t received, due;
    int64_t *sent;
    int tokens, done, chat, usage, stream, prompt;
} Request;

typedef struct {
    int fd;
    char *in;
    size_t len, cap;
    char *out; /* what the system did not take */
    size_t out_len, out_cap;
    Request *now;
    unsigned generation;
} Connection;

typedef struct {
    int64_t at;
    int fd;
    unsigned generation;
} Timer;

static Connection *connections[MAX_FDS];
static unsigned generations;
static Timer *heap;
static size_t heap_len, heap_cap;
static Request **finished;
static size_t finished_len, finished_cap;
static int64_t ttft_ns, gap_ns;
static int poller;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void *grown(void *old, size_t *cap, size_t need, size_t size) {
    if (need <= *cap) return old;
    while (*cap < need) *cap = *cap ? *cap * 2 : 64;
    void *new = realloc(old, *cap * size);
    if (!new) abort();
    return new;
}

static void push(Timer timer) {
    heap = grown(heap, &heap_cap, heap_len + 1, sizeof *heap);
    size_t i = heap_len++;
    while (i && heap[(i - 1) / 2].at > timer.at) heap[i] = heap[(i - 1) / 2], i = (i - 1) / 2;
    heap[i] = timer;
}

static Timer pop(void) {
    Timer first = heap[0], last = heap[--heap_len];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < heap_len) {
        if (child + 1 < heap_len && heap[child + 1].at < heap[child].at) child++;
        if (heap[child].at >= last.at) break;
        heap[i] = heap[child], i = child;
    }
    heap[i] = last;
    return first;
}

static void watch(Connection *c, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (c->out_len ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(poller, operation, c->fd, &event);
}

static void keep(Request *request) {
    finished = grown(finished, &finished_cap, finished_len + 1, sizeof *finished);
    finished[finished_len++] = request;
}

static void drop(Connection *c) {
    connections[c->fd] = NULL;
    close(c->fd);
    if (c->now) keep(c->now);
    free(c->in), free(c->out), free(c);
}

/* 0 when the connection is gone */
static int hand(Connection *c, const char *data, size_t len) {
    if (!c->out_len) {
        ssize_t n = send(c->fd, data, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n == (ssize_t)len) return 1;
        if (n < 0 && errno != EAGAIN) return drop(c), 0;
        data += n < 0 ? 0 : n, len -= n < 0 ? 0 : (size_t)n;
    }
    c->out = grown(c->out, &c->out_cap, c->out_len + len, 1);
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
    watch(c, EPOLL_CTL_MOD);
    return 1;
}

static const char *USAGE =
    "\"usage\":{\"prompt_tokens\":%d,\"total_tokens\":%d,\"completion_tokens\":%d,"
    "\"prompt_tokens_details\":{\"cached_tokens\":0}}";
static const char *ENVELOPE =
    "{\"id\":\"cmpl-0\",\"object\":\"%s\",\"created\":1735689600,\"model\":\"oracle\",\"choices\":[";

static int envelope(char *to, const Request *r, int chunk) {
    const char *kind = r->chat ? chunk ? "chat.completion.chunk" : "chat.completion" : "text_completion";
    return sprintf(to, ENVELOPE, kind);
}

static int event(char *to, const Request *r, const char *text, int last, int role) {
    char body[1024];
    int n = envelope(body, r, 1);
    const char *reason = last ? "\"length\"" : "null";
    if (r->chat)
        n += sprintf(body + n,
                     "{\"index\":0,\"delta\":{%s\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":%s}]%s}",
                     role ? "\"role\":\"assistant\"," : "", text, reason, r->usage ? ",\"usage\":null" : "");
    else
        n += sprintf(body + n,
                     "{\"index\":0,\"text\":\"%s\",\"logprobs\":null,\"finish_reason\":%s,\"stop_reason\":null}]%s}",
                     text, reason, r->usage ? ",\"usage\":null" : "");
    return sprintf(to, "%x\r\ndata: %s\n\n\r\n", n + 8, body);
}

static int ending(char *to, const Request *r) {
    int n = 0;
    if (r->usage) {
        char body[512];
        int size = envelope(body, r, 1);
        size += sprintf(body + size, "],");
        size += sprintf(body + size, USAGE, r->prompt, r->prompt + r->tokens, r->tokens);
        size += sprintf(body + size, "}");
        n += sprintf(to + n, "%x\r\ndata: %s\n\n\r\n", size + 8, body);
    }
    return n + sprintf(to + n, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static const char *HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                          "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";

static void whole(Connection *c, const char *kind, const char *body, size_t len) {
    char head[256];
    int n = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", kind, len);
    if (hand(c, head, (size_t)n)) hand(c, body, len);
}

static void emit(Connection *c) {
    static char data[1 << 14];
    Request *r = c->now;
    int last = r->done + 1 == r->tokens, n = 0;
    char text[64];
    if (!r->done && r->stream) n = sprintf(data, "%s", HEAD);
    int64_t stamp = now_ns();
    r->sent[r->done] = stamp;
    if (r->stream) {
        if (r->done)
            sprintf(text, " %019lld", (long long)stamp);
        else
            sprintf(text, " R%019lld %019lld", (long long)r->received, (long long)stamp);
        n += event(data + n, r, text, last, !r->done);
        if (last) n += ending(data + n, r);
    }
    r->done++;
    if (last) c->now = NULL, keep(r);
    if (n && !hand(c, data, (size_t)n)) return;
    if (last && !r->stream) {
        char *body = malloc((size_t)r->tokens * 20 + 2048), *at = body;
        at += envelope(at, r, 0);
        at += sprintf(at, r->chat ? "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"" : "{\"index\":0,\"text\":\"");
        at += sprintf(at, " R%019lld", (long long)r->received);
        for (int i = 0; i < r->tokens; i++) at += sprintf(at, " %019lld", (long long)r->sent[i]);
        at += sprintf(at, "\"%s,\"logprobs\":null,\"finish_reason\":\"length\"}],", r->chat ? "}" : "");
        at += sprintf(at, USAGE, r->prompt, r->prompt + r->tokens, r->tokens);
        at += sprintf(at, "}");
        whole(c, "application/json", body, (size_t)(at - body));
        free(body);
        return;
    }
    if (!last) {
        r->due += gap_ns;
        push((Timer){r->due, c->fd, c->generation});
    }
}

static int number(const char *body, const char *name, int otherwise) {
    const char *at = strstr(body, name);
    if (!at) return otherwise;
    at += strlen(name);
    at += strspn(at, "\" :");
    return *at >= '0' && *at <= '9' ? atoi(at) : otherwise;
}

static int flag(const char *body, const char *name) {
    const char *at = strstr(body, name);
    if (!at) return 0;
    at += strlen(name);
    at += strspn(at, "\" :");
    return !strncmp(at, "true", 4);
}

static void dump(Connection *c) {
    size_t need = 64;
    for (size_t i = 0; i < finished_len; i++) need += 21 * (size_t)(finished[i]->done + 1) + 2;
    char *text = malloc(need), *at = text;
    for (size_t i = 0; i < finished_len; i++) {
        at += sprintf(at, "%lld", (long long)finished[i]->received);
        for (int k = 0; k < finished[i]->done; k++) at += sprintf(at, " %lld", (long long)finished[i]->sent[k]);
        *at++ = '\n';
        free(finished[i]->sent), free(finished[i]);
    }
    finished_len = 0;
    whole(c, "text/plain", text, (size_t)(at - text));
    free(text);
}

static void asked(Connection *c, char *head, char *body, int64_t received) {
    if (!strncmp(head, "GET /dump", 9)) {
        dump(c);
        return;
    }
    if (strncmp(head, "POST /v1/", 9)) {
        static const char models[] = "{\"object\":\"list\",\"data\":[{\"id\":\"oracle\",\"object\":\"model\",\"created\":1,"
                                     "\"owned_by\":\"llmbench\",\"max_model_len\":65536}]}";
        whole(c, "application/json", models, sizeof models - 1);
        return;
    }
    Request *r = calloc(1, sizeof *r);
    r->received = received;
    r->chat = !strncmp(head + 9, "chat", 4);
    r->tokens = number(body, "\"max_tokens", number(body, "\"max_completion_tokens", 16));
    if (r->tokens < 1) r->tokens = 1;
    r->usage = flag(body, "\"include_usage");
    r->stream = flag(body, "\"stream\"");
    r->prompt = 32;
    r->sent = calloc((size_t)r->tokens, sizeof *r->sent);
    r->due = received + ttft_ns;
    c->now = r;
    push((Timer){r->due, c->fd, c->generation});
}

static void readable(Connection *c) {
    c->in = grown(c->in, &c->cap, c->len + (1 << 16), 1);
    ssize_t n = recv(c->fd, c->in + c->len, (1 << 16) - 1, 0);
    int64_t received = now_ns();
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        drop(c);
        return;
    }
    c->len += (size_t)n;
    c->in[c->len] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end || c->now) return;
    *end = 0;
    char *at = strcasestr(c->in, "content-length:");
    size_t length = at ? (size_t)atol(at + 15) : 0, all = (size_t)(end - c->in) + 4 + length;
    int continued = c->len == (size_t)(end - c->in) + 4 && strcasestr(c->in, "100-continue");
    *end = '\r';
    if (continued && !hand(c, "HTTP/1.1 100 Continue\r\n\r\n", 25)) return;
    if (c->len < all) return;
    c->len = 0;
    asked(c, c->in, end + 4, received);
}

static void writable(Connection *c) {
    ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
        if (errno != EAGAIN) drop(c);
        return;
    }
    c->out_len -= (size_t)n;
    memmove(c->out, c->out + n, c->out_len);
    if (!c->out_len) watch(c, EPOLL_CTL_MOD);
}

static void accepted(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Connection *c = calloc(1, sizeof *c);
        c->fd = fd, c->generation = ++generations;
        connections[fd] = c;
        watch(c, EPOLL_CTL_ADD);
    }
}

int main(int argc, char **argv) {
    if (argc != 3) return fprintf(stderr, "usage: oracle TTFT_US GAP_US\n"), 2;
    ttft_ns = atoll(argv[1]) * 1000, gap_ns = atoll(argv[2]) * 1000;
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) return perror("oracle"), 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    poller = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        for (int i = 0; i < IN_A_ROW && heap_len && heap[0].at <= now_ns(); i++) {
            Timer timer = pop();
            Connection *c = connections[timer.fd];
            if (c && c->generation == timer.generation && c->now) emit(c);
        }
        struct timespec wait = {0, 0}, *waiting = NULL;
        if (heap_len) {
            int64_t left = heap[0].at - now_ns();
            if (left > 0) wait.tv_sec = left / 1000000000, wait.tv_nsec = left % 1000000000;
            waiting = &wait;
        }
        int n = epoll_pwait2(poller, events, 256, waiting, NULL);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                accepted(listener);
                continue;
            }
            if (connections[fd] && events[i].events & EPOLLOUT) writable(connections[fd]);
            if (connections[fd] && events[i].events & ~(uint32_t)EPOLLOUT) readable(connections[fd]);
        }
    }
}
