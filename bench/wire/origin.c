/* An HTTP origin for one core: `origin CERT KEY PLAIN_PORT TLS_PORT`. Any request is answered with 128 bytes, `/bytes/N` with N bytes. One epoll
 * thread; keep-alive always; TLS 1.3 with AES-128-GCM first, so that bulk figures measure the proxy and not a cipher. `/events` is answered with a
 * stream of events, one every two milliseconds, each with the moment of its sending (nanoseconds, CLOCK_MONOTONIC). */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

struct conn { int fd; SSL *ssl; int shaken, wants_out; char in[8192]; size_t in_len; char head[256]; size_t head_len, head_off; long left; int streams; };
static int ep; static SSL_CTX *ctx; static char body[65536]; static int listeners[2]; static int ticks; static struct conn *streaming[64];

static void drop(struct conn *c) { for (int i = 0; i < 64; i++) if (streaming[i] == c) streaming[i] = NULL; if (c->ssl) SSL_free(c->ssl); close(c->fd); free(c); }
static ssize_t put(struct conn *c, const void *p, size_t n) {
    if (!c->ssl) return send(c->fd, p, n, MSG_NOSIGNAL);
    int r = SSL_write(c->ssl, p, (int)n); if (r > 0) return r;
    int e = SSL_get_error(c->ssl, r); errno = e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE ? EAGAIN : EPIPE; return -1;
}
static ssize_t get(struct conn *c, void *p, size_t n) {
    if (!c->ssl) return recv(c->fd, p, n, 0);
    int r = SSL_read(c->ssl, p, (int)n); if (r > 0) return r;
    int e = SSL_get_error(c->ssl, r); if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE) { errno = EAGAIN; return -1; } return 0;
}
static int pump(struct conn *c) {   /* 1 all sent, 0 later, -1 gone */
    while (c->head_off < c->head_len) {
        if (c->head_len - c->head_off + (size_t)c->left <= 4096) {   /* a small answer leaves in one write */
            char one[4352]; size_t h = c->head_len - c->head_off; memcpy(one, c->head + c->head_off, h); memcpy(one + h, body, (size_t)c->left);
            ssize_t n = put(c, one, h + (size_t)c->left); if (n < 0) return errno == EAGAIN ? 0 : -1;
            if ((size_t)n >= h) { c->head_off = c->head_len; c->left -= n - (long)h; } else c->head_off += (size_t)n;
            continue;
        }
        ssize_t n = put(c, c->head + c->head_off, c->head_len - c->head_off); if (n < 0) return errno == EAGAIN ? 0 : -1;
        c->head_off += (size_t)n;
    }
    while (c->left > 0) {
        ssize_t n = put(c, body, c->left < (long)sizeof body ? (size_t)c->left : sizeof body); if (n < 0) return errno == EAGAIN ? 0 : -1;
        c->left -= n;
    }
    return 1;
}
static void serve(struct conn *c) {
    if (c->ssl && !c->shaken) {
        int r = SSL_do_handshake(c->ssl);
        if (r != 1) { int e = SSL_get_error(c->ssl, r); if (e == SSL_ERROR_WANT_READ || e == SSL_ERROR_WANT_WRITE) return; drop(c); return; }
        c->shaken = 1;
    }
    for (;;) {
        int done = pump(c);
        if (done < 0) { drop(c); return; }
        if (c->wants_out == done) {   /* ask for room only while something waits */
            c->wants_out = !done; struct epoll_event e = {.events = EPOLLIN | (done ? 0 : EPOLLOUT), .data.ptr = c};
            epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
        }
        if (!done) return;
        char *end;
        while (!(end = memmem(c->in, c->in_len, "\r\n\r\n", 4))) {
            if (c->in_len == sizeof c->in) { drop(c); return; }
            ssize_t n = get(c, c->in + c->in_len, sizeof c->in - c->in_len);
            if (n < 0 && errno == EAGAIN) return;
            if (n <= 0) { drop(c); return; }
            c->in_len += (size_t)n;
        }
        if (memmem(c->in, (size_t)(end - c->in), " /events ", 9)) {
            for (int i = 0; i < 64 && !c->streams; i++) if (!streaming[i]) { streaming[i] = c; c->streams = 1; }
            static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
            if (put(c, head, sizeof head - 1) < 0) { drop(c); return; }
            c->in_len = 0; continue;
        }
        char *want = memmem(c->in, (size_t)(end - c->in), "/bytes/", 7);
        c->left = want ? atol(want + 7) : 128;
        c->head_len = (size_t)snprintf(c->head, sizeof c->head, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %ld\r\n\r\n", c->left);
        c->head_off = 0;
        size_t used = (size_t)(end - c->in) + 4; memmove(c->in, c->in + used, c->in_len - used); c->in_len -= used;
    }
}
static void tick(void) {
    uint64_t past; if (read(ticks, &past, sizeof past) < 0) return;
    for (int i = 0; i < 64; i++) if (streaming[i]) {
        struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t);
        char event[64], chunk[96]; int n = snprintf(event, sizeof event, "data: %ld\n\n", t.tv_sec * 1000000000L + t.tv_nsec);
        n = snprintf(chunk, sizeof chunk, "%x\r\n%s\r\n", (unsigned)n, event);
        if (put(streaming[i], chunk, (size_t)n) < 0) drop(streaming[i]);
    }
}
static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1; setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 8192)) { perror("listen"); exit(1); }
    return fd;
}
int main(int argc, char **argv) {
    if (argc < 5) return 2;
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files; getrlimit(RLIMIT_NOFILE, &files); files.rlim_cur = files.rlim_max; setrlimit(RLIMIT_NOFILE, &files);
    ctx = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(ctx, argv[1]) != 1 || SSL_CTX_use_PrivateKey_file(ctx, argv[2], SSL_FILETYPE_PEM) != 1) return 1;
    SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"); SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    ep = epoll_create1(0); listeners[0] = listen_on(atoi(argv[3])); listeners[1] = listen_on(atoi(argv[4]));
    for (int i = 0; i < 2; i++) { struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listeners[i]}; epoll_ctl(ep, EPOLL_CTL_ADD, listeners[i], &e); }
    ticks = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK); struct itimerspec every = {{0, 2000000}, {0, 2000000}}; timerfd_settime(ticks, 0, &every, NULL);
    struct epoll_event clock_event = {.events = EPOLLIN, .data.ptr = &ticks}; epoll_ctl(ep, EPOLL_CTL_ADD, ticks, &clock_event);
    struct epoll_event events[256];
    for (;;) {
        int n = epoll_wait(ep, events, 256, -1);
        for (int i = 0; i < n; i++) {
            int *l = events[i].data.ptr;
            if (l == &ticks) { tick(); continue; }
            if (l == &listeners[0] || l == &listeners[1]) {
                for (int fd; (fd = accept4(*l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
                    int one = 1; setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    struct conn *c = calloc(1, sizeof *c); c->fd = fd;
                    if (l == &listeners[1]) { c->ssl = SSL_new(ctx); SSL_set_fd(c->ssl, fd); SSL_set_accept_state(c->ssl); }
                    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c}; epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
                }
            } else serve(events[i].data.ptr);
        }
    }
}
