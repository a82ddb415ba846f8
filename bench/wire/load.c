/* A closed-loop load generator for one core: epoll, OpenSSL, no threads.
 *
 *   load PROXY_PORT MODE HOST COUNT CONNECTIONS SECONDS PATH [STATUS]
 *
 * The proxy is on 127.0.0.1; PROXY_PORT 0 goes to the origin directly, whose address is in ORIGIN. HOST may hold one %d: the host's number, counted up for every new connection. COUNT bounds that
 * number (0: no bound). Modes:
 *   plain   absolute-form HTTP requests on kept connections          tunnel  the same bytes through CONNECT, no TLS
 *   tls     CONNECT, TLS, requests on kept connections               once    CONNECT, TLS, one request, new connection each time
 *   open    CONNECT without TLS, one request, new connection         h2      as tls with HTTP/2, 16 streams on each connection
 *   fresh   one absolute-form HTTP request, new connection each time
 *   idle    CONNECT, TLS, one request on each connection, then wait for a line on standard input (memory is read meanwhile)
 *   quiet   CONNECT without TLS and without a request, then wait as above
 *   events  as tls, one request for a stream of events that say when they were sent; an operation is an event, its time how long it travelled
 *   trickle CONNECT's opposite of haste: a request head that never ends, a byte a second on each connection; reconnects when it is thrown out
 * Prints one JSON line: operations, seconds, bytes of bodies, p50 and p99 in microseconds, failures. Certificates are not verified here: the
 * runner has checked each candidate with verification on before it measures. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum mode { PLAIN, TUNNEL, TLS, ONCE, OPEN, H2, IDLE, QUIET, EVENTS, TRICKLE, FRESH };
enum state { CONNECTING, ASKED, SHAKING, HEAD, BODY, CHUNKS, FRAMES, STREAM, PARKED };
enum { STREAMS = 16, SLOTS = 64, SAMPLES = 1 << 22 };

struct conn {
    int fd; SSL *ssl; enum state state; char host[256];
    char out[8192]; size_t out_len, out_off;
    unsigned char in[65536]; size_t in_len;
    long left; double began; int wants_out, closes;
    uint32_t next_stream; double stream_began[SLOTS]; long opened, lives;
};

static enum mode mode; static const char *host_form, *path; static int proxy_port, origin_plain = 80, origin_tls = 443, expect = 200;
static long host_count, host_next, operations, failures, bytes, parked; static float *samples; static long sample_count;
static SSL_CTX *ctx; static int ep, stopping; static double deadline;

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static int brief(void) { return mode == ONCE || mode == OPEN || mode == FRESH; } /* a connection for one operation */
static int secure(void) { return mode == TLS || mode == ONCE || mode == H2 || mode == IDLE || mode == EVENTS; }
static void finished(double began) {
    operations++;
    if (sample_count < SAMPLES) samples[sample_count++] = (float)((now() - began) * 1e6);
}
static void drive(struct conn *c);

static void queue(struct conn *c, const void *data, size_t n) {
    if (c->out_off) { memmove(c->out, c->out + c->out_off, c->out_len - c->out_off); c->out_len -= c->out_off; c->out_off = 0; }
    if (c->out_len + n > sizeof c->out) abort();
    memcpy(c->out + c->out_len, data, n); c->out_len += n;
}

static void dial(struct conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (brief()) { struct linger l = {1, 0}; setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof l); }
    snprintf(c->host, sizeof c->host, host_form, (int)(host_count ? host_next % host_count : host_next)); host_next++;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = proxy_port ? htonl(INADDR_LOOPBACK) : inet_addr(getenv("ORIGIN"))};
    a.sin_port = htons(proxy_port ? proxy_port : secure() ? origin_tls : origin_plain);
    c->out_len = c->out_off = c->in_len = 0; c->left = 0; c->ssl = NULL; c->closes = 0; c->next_stream = 1; c->opened = 0;
    c->lives++; c->state = CONNECTING; c->began = now(); c->wants_out = 1;
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a) && errno != EINPROGRESS) { perror("connect"); exit(1); }
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}

static void hang_up(struct conn *c) {
    if (c->ssl) { SSL_free(c->ssl); c->ssl = NULL; }
    close(c->fd); c->fd = -1;
}
static void again(struct conn *c) { hang_up(c); if (!stopping) dial(c); }
static void fail(struct conn *c, const char *why) {
    if (failures++ < 3) fprintf(stderr, "load: %s (%s, state %d): %.*s\n", why, c->host, c->state, (int)(c->in_len < 200 ? c->in_len : 200), c->in);
    if (failures > 200) exit(3);
    again(c);
}

static void ask(struct conn *c) {
    char b[1024]; int n;
    if ((mode == PLAIN || mode == FRESH) && proxy_port) n = snprintf(b, sizeof b, "GET http://%s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n", c->host, path, c->host);
    else n = snprintf(b, sizeof b, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n", path, c->host);
    queue(c, b, (size_t)n); c->state = HEAD; c->in_len = 0;
    if (!brief()) c->began = now();
}

static void open_stream(struct conn *c) {
    unsigned char f[600]; size_t n = 9; size_t h = strlen(c->host), p = strlen(path);
    f[n++] = 0x82; f[n++] = 0x87;                                             /* :method GET, :scheme https (RFC 7541 appendix A) */
    f[n++] = 0x01; f[n++] = (unsigned char)h; memcpy(f + n, c->host, h); n += h;   /* :authority, literal, not indexed */
    f[n++] = 0x04; f[n++] = (unsigned char)p; memcpy(f + n, path, p); n += p;      /* :path */
    size_t len = n - 9; uint32_t id = c->next_stream; c->next_stream += 2;
    f[0] = 0; f[1] = (unsigned char)(len >> 8); f[2] = (unsigned char)len; f[3] = 1; f[4] = 0x5; f[5] = (unsigned char)(id >> 24); f[6] = (unsigned char)(id >> 16); f[7] = (unsigned char)(id >> 8); f[8] = (unsigned char)id;
    queue(c, f, n); c->stream_began[(id / 2) % SLOTS] = now(); c->opened++;
}

static void begin_h2(struct conn *c) {
    static const unsigned char start[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        "\0\0\6\4\0\0\0\0\0" "\0\4\x3f\xff\xff\xff" "\0\0\4\10\0\0\0\0\0" "\x3f\xff\0\0";
    queue(c, start, sizeof start - 1); c->state = FRAMES; c->in_len = 0;
    for (int i = 0; i < STREAMS; i++) open_stream(c);
}

static void established(struct conn *c) {
    if (secure()) {
        c->ssl = SSL_new(ctx); SSL_set_fd(c->ssl, c->fd); SSL_set_tlsext_host_name(c->ssl, c->host); SSL_set_connect_state(c->ssl);
        c->state = SHAKING;
    } else if (mode == QUIET) { c->state = PARKED; parked++; operations++; }
    else ask(c);
}

static int flush(struct conn *c) {
    while (c->out_off < c->out_len) {
        ssize_t n;
        if (c->ssl) { n = SSL_write(c->ssl, c->out + c->out_off, (int)(c->out_len - c->out_off)); if (n <= 0) { int e = SSL_get_error(c->ssl, (int)n); if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE) return 0; return -1; } }
        else { n = send(c->fd, c->out + c->out_off, c->out_len - c->out_off, MSG_NOSIGNAL); if (n < 0) return errno == EAGAIN ? 0 : -1; }
        c->out_off += (size_t)n;
    }
    c->out_len = c->out_off = 0;
    return 1;
}

static void complete(struct conn *c) {
    finished(c->began);
    if (brief() || c->closes) { again(c); return; }
    if (mode == IDLE) { c->state = PARKED; parked++; return; }
    if (stopping) { hang_up(c); return; }
    ask(c);
}

static int head_done(struct conn *c, unsigned char *end) {
    size_t head = (size_t)(end - c->in) + 4; *end = 0;
    int status = atoi((char *)c->in + 9);
    char *length = strcasestr((char *)c->in, "\r\ncontent-length:"); long body = length ? atol(length + 17) : 0;
    c->closes = strcasestr((char *)c->in, "\r\nconnection: close") != NULL;
    int chunked = strcasestr((char *)c->in, "\r\ntransfer-encoding:") != NULL;
    if (status != expect) { fail(c, "another status"); return 0; }
    memmove(c->in, c->in + head, c->in_len - head); c->in_len -= head;
    if (chunked) { c->state = mode == EVENTS ? STREAM : CHUNKS; return 1; }
    c->left = body; c->state = BODY;
    return 1;
}

/* Returns 0 when the connection was replaced or needs more bytes. */
static int digest(struct conn *c) {
    switch (c->state) {
    case ASKED: {
        unsigned char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return 0;
        if (memcmp(c->in + 9, "200", 3)) {
            if (expect == 403 && !memcmp(c->in + 9, "403", 3)) { finished(c->began); again(c); return 0; }
            fail(c, "CONNECT refused"); return 0;
        }
        c->in_len = 0; established(c); return 0;
    }
    case HEAD: {
        unsigned char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        return end ? head_done(c, end) : 0;
    }
    case BODY:
        bytes += (long)c->in_len < c->left ? (long)c->in_len : c->left;
        c->left -= (long)c->in_len; c->in_len = 0;
        if (c->left > 0) return 0;
        complete(c); return 0;
    case CHUNKS: {   /* only the end matters here */
        bytes += (long)c->in_len;
        if (c->in_len >= 5 && !memcmp(c->in + c->in_len - 5, "0\r\n\r\n", 5)) { c->in_len = 0; complete(c); return 0; }
        if (c->in_len > 8) { memmove(c->in, c->in + c->in_len - 8, 8); c->in_len = 8; }
        return 0;
    }
    case STREAM: {
        unsigned char *start, *end; c->in[c->in_len] = 0;
        while ((start = memmem(c->in, c->in_len, "data: ", 6)) && (end = memmem(start, c->in_len - (size_t)(start - c->in), "\n\n", 2))) {
            finished((double)atol((char *)start + 6) / 1e9);
            size_t used = (size_t)(end - c->in) + 2; memmove(c->in, c->in + used, c->in_len - used); c->in_len -= used;
        }
        return 0;
    }
    case FRAMES: {
        size_t at = 0;
        while (c->in_len - at >= 9) {
            unsigned char *f = c->in + at; size_t len = (size_t)f[0] << 16 | (size_t)f[1] << 8 | f[2];
            if (len > 16384) { fail(c, "long frame"); return 0; }
            if (c->in_len - at < 9 + len) break;
            uint32_t id = ((uint32_t)f[5] << 24 | (uint32_t)f[6] << 16 | (uint32_t)f[7] << 8 | f[8]) & 0x7fffffff;
            if (f[3] == 0) bytes += (long)len;
            if (f[3] == 4 && !(f[4] & 1)) queue(c, "\0\0\0\4\1\0\0\0\0", 9);
            if (f[3] == 6 && !(f[4] & 1)) { unsigned char pong[17] = {0, 0, 8, 6, 1}; memcpy(pong + 9, f + 9, 8); queue(c, pong, 17); }
            if (f[3] == 3 || f[3] == 7) { fail(c, "reset or goaway"); return 0; }
            if (f[3] == 1 && len && f[9] != 0x88 && expect == 200) { fail(c, "another status"); return 0; }
            if (f[3] <= 1 && (f[4] & 1)) {
                finished(c->stream_began[(id / 2) % SLOTS]);
                if (!stopping && c->next_stream < 0x40000000) open_stream(c);
            }
            at += 9 + len;
        }
        memmove(c->in, c->in + at, c->in_len - at); c->in_len -= at;
        return 0;
    }
    default: return 0;
    }
}

static void drive(struct conn *c) {
    if (c->state == CONNECTING) {
        int e = 0; socklen_t n = sizeof e; getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &n);
        if (e) { fail(c, strerror(e)); return; }
        if (proxy_port && mode != PLAIN && mode != FRESH) {
            char b[600]; int k = snprintf(b, sizeof b, "CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n", c->host, secure() ? 443 : 80, c->host, secure() ? 443 : 80);
            queue(c, b, (size_t)k); c->state = ASKED;
        } else established(c);
    }
    for (;;) {
        if (c->fd < 0) return;
        if (c->state == SHAKING) {
            int r = SSL_do_handshake(c->ssl);
            if (r != 1) { int e = SSL_get_error(c->ssl, r); if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE) break; fail(c, "handshake"); return; }
            if (mode == H2) {
                const unsigned char *alpn; unsigned n; SSL_get0_alpn_selected(c->ssl, &alpn, &n);
                if (n != 2) { fail(c, "no h2"); return; }
                begin_h2(c);
            } else ask(c);
        }
        if (flush(c) < 0) { fail(c, "write"); return; }
        if (c->in_len == sizeof c->in) { fail(c, "head too long"); return; }
        ssize_t n; size_t room = sizeof c->in - 1 - c->in_len;
        if (c->ssl) { n = SSL_read(c->ssl, c->in + c->in_len, (int)room); if (n <= 0) { int e = SSL_get_error(c->ssl, (int)n); if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE) break; if (stopping) { hang_up(c); return; } fail(c, "closed"); return; } }
        else { n = recv(c->fd, c->in + c->in_len, room, 0); if (n < 0 && errno == EAGAIN) break; if (n <= 0) { if (stopping) { hang_up(c); return; } fail(c, "closed"); return; } }
        c->in_len += (size_t)n;
        long lives = c->lives;
        while (digest(c)) {}
        if (c->lives != lives || c->fd < 0) return;   /* the descriptor's number may be the same */
    }
    int wants = c->out_off < c->out_len;
    if (c->fd >= 0 && wants != c->wants_out) {
        struct epoll_event e = {.events = EPOLLIN | (wants ? EPOLLOUT : 0), .data.ptr = c};
        epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e); c->wants_out = wants;
    }
}

/* Returns when standard input ends. A hundredth of the connections has its turn every 10 ms; who was thrown out comes back with the next turn. */
static void trickle(struct conn *all, int count) {
    static const char head[] = "GET http://a.bench.test/x HTTP/1.1\r\nHost: a.bench.test\r\nX-Slow: ";
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((unsigned short)proxy_port)};
    struct pollfd in = {.fd = 0, .events = POLLIN};
    for (int i = 0; i < count; i++) all[i].fd = -1;
    for (int turn = 0;; turn = (turn + 1) % 100) {
        for (int i = turn; i < count; i += 100) {
            struct conn *c = &all[i];
            if (c->fd < 0) {
                c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
                if (connect(c->fd, (struct sockaddr *)&a, sizeof a) || send(c->fd, head, sizeof head - 1, MSG_NOSIGNAL) < 0) { close(c->fd); c->fd = -1; failures++; continue; }
                fcntl(c->fd, F_SETFL, O_NONBLOCK); operations++; continue;
            }
            char byte;
            if (recv(c->fd, &byte, 1, MSG_DONTWAIT) == 0 || send(c->fd, "x", 1, MSG_NOSIGNAL) < 0) { close(c->fd); c->fd = -1; failures++; }
        }
        if (turn == 99) { fprintf(stdout, "{\"operations\": %ld, \"failures\": %ld}\n", operations, failures); fflush(stdout); }
        if (poll(&in, 1, 10)) return;
    }
}

static int by_value(const void *a, const void *b) { float x = *(const float *)a, y = *(const float *)b; return (x > y) - (x < y); }

int main(int argc, char **argv) {
    if (argc < 8) { fprintf(stderr, "usage: load PROXY_PORT MODE HOST COUNT CONNECTIONS SECONDS PATH [STATUS]\n"); return 2; }
    static const char *names[] = {"plain", "tunnel", "tls", "once", "open", "h2", "idle", "quiet", "events", "trickle", "fresh"};
    signal(SIGPIPE, SIG_IGN);
    proxy_port = atoi(argv[1]); int known = 0;
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++) if (!strcmp(argv[2], names[i])) { mode = (enum mode)i; known = 1; }
    if (!known) return 2;
    host_form = argv[3]; host_count = atol(argv[4]); int connections = atoi(argv[5]); double seconds = atof(argv[6]); path = argv[7];
    if (argc > 8) expect = atoi(argv[8]);
    struct rlimit files; getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files);
    samples = malloc(sizeof *samples * SAMPLES);
    ctx = SSL_CTX_new(TLS_client_method()); SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL); SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_alpn_protos(ctx, (const unsigned char *)(mode == H2 ? "\2h2" : "\10http/1.1"), mode == H2 ? 3 : 9);
    ep = epoll_create1(EPOLL_CLOEXEC);
    struct conn *all = calloc((size_t)connections, sizeof *all);
    if (mode == TRICKLE) { trickle(all, connections); return 0; }
    int waiting = mode == IDLE || mode == QUIET, opened = 0;
    double start = now(); deadline = start + seconds;
    if (!waiting) for (; opened < connections; opened++) dial(&all[opened]);
    struct epoll_event events[256];
    for (;;) {
        double t = now();
        if (waiting) {
            while (opened < connections && opened - parked < 64) dial(&all[opened++]);
            if (parked == connections || t > deadline + 60) break;
        } else if (t >= deadline) break;
        int n = epoll_wait(ep, events, 256, 50);
        for (int i = 0; i < n; i++) { struct conn *c = events[i].data.ptr; if (c->fd >= 0) drive(c); }
    }
    stopping = 1; double took = now() - start;
    if (waiting) { printf("{\"parked\": %ld}\n", parked); fflush(stdout); char line[8]; if (!fgets(line, sizeof line, stdin)) return 0; return 0; }
    qsort(samples, (size_t)sample_count, sizeof *samples, by_value);
    printf("{\"operations\": %ld, \"seconds\": %.4f, \"bytes\": %ld, \"p50\": %.1f, \"p99\": %.1f, \"failures\": %ld}\n", operations, took, bytes,
           sample_count ? samples[sample_count / 2] : 0.0, sample_count ? samples[(long)((double)sample_count * 0.99)] : 0.0, failures);
    return operations ? 0 : 4;
}
