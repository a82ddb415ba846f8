/* sbx-agent: the first program in every sandbox. It runs commands for the host and carries their streams.
 *
 *   sbx-agent agent                                    serve the link on descriptor 0 (a socket), or 0 and 1 (pipes)
 *   sbx-agent sudo [-u USER] [-EHn] [--] [K=V…] CMD…   become another user; also when it is called `sudo`
 *
 * It is one static file without dependencies, because it has to start in every root file system: no shell, no libc,
 * no /etc/passwd are taken for granted. It uses no system call that gVisor lacks (pidfd_open, openat2). identity.c says
 * who a command runs as, command.c is what stands between its fork and its exec. Build it with
 *
 *   cc -O2 -static -o sbx-agent *.c                    (or: python hatch_build.py)
 *
 * Theory of operation
 *
 * The link carries frames (ARCHITECTURE.md, "Frames") of up to CHANNELS concurrent channels; a channel is one command
 * with its terminal or its pipes. One thread, one epoll set, no blocking call but the exec'd child's own: whatever may
 * hang (looking up a user in a file that the sandbox may have replaced by a FIFO, entering a directory, opening the
 * program) is done between fork and exec, where it hangs nobody but that command.
 *
 * Nothing is buffered without a bound. Towards a command there are at most WINDOW bytes, which is what the host may
 * send before we grant more; we grant what the command has read. Towards the host, streams are read only while
 * their window is open and the link's buffer is below OUT_DATA, so that small frames always find room; while it is
 * above OUT_PAUSE nothing more is read from the host. What is not read stays in the command's pipe or terminal: this
 * is how back-pressure reaches the command.
 *
 * A channel ends when its command has been reaped and its output has been read to the end. A descendant may keep that
 * output open for ever (`sh -c 'daemon &'`): DRAIN_MS after the command's end, what is in the pipes at that moment
 * still counts and nothing later does.
 *
 * The host is trusted, but not to be without mistakes: a frame that cannot be right ends the agent, and with it the
 * sandbox. All descriptors are close-on-exec. As the first process of a pid namespace the agent also reaps orphans.
 */
#define _GNU_SOURCE
#include "command.h"
#include "sudo.h"
#include "terminal.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum kind { OPEN = 1, STDIN, RESIZE, SIGNAL, HANGUP, CREDIT, HELLO = 16, OPENED, STDOUT, STDERR, EXIT, FAIL };
enum {
    VERSION = 1,
    HEADER = 12,
    WINDOW = 262144,
    GRANT = WINDOW / 4,
    CHANNELS = 256,
    OUT = 1 << 20,           /* the link's buffer towards the host */
    OUT_DATA = OUT / 2,      /* streams are read below this */
    OUT_PAUSE = OUT / 4 * 3, /* the host is heard below this */
    DRAIN_MS = 250,
    KILL_MS = 5000,
};

static void __attribute__((noreturn, format(printf, 1, 2))) die(const char *format, ...)
{
    va_list rest;
    va_start(rest, format);
    dprintf(2, "sbx-agent: ");
    vdprintf(2, format, rest);
    dprintf(2, "\n");
    va_end(rest);
    exit(1);
}

static void put32(unsigned char *p, uint32_t n)
{
    p[0] = n >> 24, p[1] = n >> 16, p[2] = n >> 8, p[3] = n;
}

/* ---- channels ------------------------------------------------------------------------------------------------ */

enum role { STATUS, INPUT, OUTPUT, ERRORS, ROLES, LINK_IN, LINK_OUT, SIGNALS, PETITIONS };

struct port {
    int fd;          /* -1: closed, or never there */
    uint32_t events; /* what epoll watches it for; 0: it is not in the set, where a hang-up would spin */
};

struct channel {
    uint32_t id; /* 0: the slot is free */
    pid_t pid;   /* 0: reaped */
    int status;  /* as of waitpid */
    bool started, terminal, hung;
    bool ended, concluded;        /* the host has sent its end of input; it has been passed on */
    struct port port[ROLES];
    int32_t left[ROLES];          /* bytes of a stream that still count after the drain's end; -1: all */
    uint64_t window;              /* what we may still send */
    uint32_t room, owed;          /* what the host may still send; what it will be granted next */
    unsigned char *input;         /* WINDOW bytes and two end-of-file characters */
    uint32_t head, tail;
    unsigned char last;           /* byte that was written last: does an end of file stand at the start of a line? */
    int64_t deadline;             /* of the drain or of the kill; 0: none */
};

static struct channel channels[CHANNELS];
static struct port link_in = {.fd = -1}, link_out = {.fd = -1}, signals = {.fd = -1}, petitions = {.fd = -1};
static unsigned char in[HEADER + PAYLOAD], out[OUT];
static size_t in_length, out_head, out_tail;
static int epoll = -1;
static bool leaving, childless;
static sigset_t no_signals;

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void watch(struct port *port, uint32_t events, uint32_t slot, enum role role)
{
    if (port->fd < 0 || port->events == events)
        return;
    struct epoll_event event = {.events = events, .data.u64 = (uint64_t)slot << 32 | role};
    int how = !events ? EPOLL_CTL_DEL : port->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (epoll_ctl(epoll, how, port->fd, &event) < 0)
        die("epoll_ctl: %s", reason(errno));
    port->events = events;
}

static void shut(struct port *port)
{
    if (port->fd >= 0) {
        /* Explicitly, for a child that has not come to its exec yet still holds the description open. */
        if (port->events)
            epoll_ctl(epoll, EPOLL_CTL_DEL, port->fd, NULL);
        close(port->fd);
    }
    *port = (struct port){.fd = -1};
}

/* Make room for one frame behind what waits for the link; there always is (theory of operation). */
static unsigned char *reserve(size_t length)
{
    if (out_head == out_tail)
        out_head = out_tail = 0;
    if (OUT - out_tail < HEADER + length) {
        memmove(out, out + out_head, out_tail - out_head);
        out_tail -= out_head, out_head = 0;
    }
    if (OUT - out_tail < HEADER + length)
        die("no room towards the host");
    return out + out_tail;
}

static void commit(enum kind kind, uint32_t channel, size_t length)
{
    unsigned char *frame = out + out_tail;
    memset(frame, 0, 4);
    frame[0] = kind;
    put32(frame + 4, channel);
    put32(frame + 8, (uint32_t)length);
    out_tail += HEADER + length;
}

static void tell(enum kind kind, uint32_t channel, uint32_t number)
{
    put32(reserve(4) + HEADER, number);
    commit(kind, channel, 4);
}

static void fail(uint32_t channel, enum failure code, const char *text)
{
    size_t length = strnlen(text, TEXT);
    unsigned char *payload = reserve(1 + length) + HEADER;
    payload[0] = code;
    memcpy(payload + 1, text, length);
    commit(FAIL, channel, 1 + length);
}

static struct channel *find(uint32_t id)
{
    for (size_t i = 0; id && i < CHANNELS; i++)
        if (channels[i].id == id)
            return &channels[i];
    return NULL;
}

static void release(struct channel *c)
{
    for (int role = 0; role < ROLES; role++)
        shut(&c->port[role]);
    free(c->input);
    memset(c, 0, sizeof *c);
}

/* Signal the command's process group; the command itself while it has not come to make one. */
static void notify(const struct channel *c, int number)
{
    if (c->pid && kill(-c->pid, number) < 0 && errno == ESRCH)
        kill(c->pid, number);
}

static void __attribute__((noreturn)) end(int code)
{
    for (size_t i = 0; i < CHANNELS; i++)
        notify(&channels[i], SIGKILL);
    if (getpid() == 1)
        kill(-1, SIGKILL);
    exit(code);
}

static void __attribute__((noreturn, format(printf, 1, 2))) broken(const char *format, ...)
{
    va_list rest;
    va_start(rest, format);
    dprintf(2, "sbx-agent: the host broke the protocol: ");
    vdprintf(2, format, rest);
    dprintf(2, "\n");
    va_end(rest);
    end(1);
}

/* ---- starting a command -------------------------------------------------------------------------------------- */

static struct request request; /* of the OPEN frame at hand; the child works on its copy */

/* One stream of a command: `ours` is non-blocking, `theirs` is not. */
static bool stream(int *ours, int *theirs, int our_end)
{
    int both[2];
    if (pipe2(both, O_CLOEXEC) < 0)
        return false;
    *ours = both[our_end], *theirs = both[!our_end];
    return fcntl(*ours, F_SETFL, O_NONBLOCK) == 0;
}

static void start(uint32_t id)
{
    struct channel *c = NULL;
    int std[3] = {-1, -1, -1}, report = -1;
    char text[TEXT];
    bool ready;
    for (size_t i = 0; i < CHANNELS && !c; i++)
        if (!channels[i].id)
            c = &channels[i];
    if (!c) {
        fail(id, SANDBOX, "too many sessions");
        return;
    }
    *c = (struct channel){.id = id, .window = WINDOW, .room = WINDOW, .last = '\n', .terminal = request.terminal};
    for (int role = 0; role < ROLES; role++)
        c->port[role].fd = c->left[role] = -1;
    ready = stream(&c->port[STATUS].fd, &report, 0);
    if (request.terminal) {
        /* Two descriptors of one master, so that input and output are ports like those of pipes. */
        ready = ready && (c->port[OUTPUT].fd = terminal_open(&request.size, &std[0])) >= 0
            && (c->port[INPUT].fd = fcntl(c->port[OUTPUT].fd, F_DUPFD_CLOEXEC, 3)) >= 0;
        std[1] = std[2] = std[0];
    } else {
        ready = ready && stream(&c->port[OUTPUT].fd, &std[1], 0) && stream(&c->port[ERRORS].fd, &std[2], 0)
            && (request.quiet ? (std[0] = fcntl(0, F_DUPFD_CLOEXEC, 3)) >= 0 : stream(&c->port[INPUT].fd, &std[0], 1));
    }
    ready = ready && (c->input = malloc(WINDOW + 2));
    if (ready && (c->pid = fork()) == 0)
        child(&request, report, std, &no_signals);
    if (!ready || c->pid < 0) {
        snprintf(text, sizeof text, "cannot make %s: %s", !ready ? "the command's streams" : "a process", reason(errno));
        c->pid = 0;
        release(c);
        fail(id, SANDBOX, text);
    }
    for (int i = 0; i < 3; i++)
        if (std[i] >= 0 && (!i || std[i] != std[0]))
            close(std[i]);
    if (report >= 0)
        close(report);
}

/* ---- streams --------------------------------------------------------------------------------------------------- */

/* Give back what the command has taken, or what nobody will take any more. */
static void grant(struct channel *c, uint32_t consumed)
{
    if (c->concluded) /* the host has said that it sends no more, and has not sent end-of-file characters */
        return;
    c->owed += consumed;
    if (c->owed >= GRANT) {
        tell(CREDIT, c->id, c->owed);
        c->room += c->owed, c->owed = 0;
    }
}

/* Pass on the end of input: a pipe is closed, at a terminal it is typed. */
static void conclude(struct channel *c)
{
    c->ended = false, c->concluded = true;
    if (!c->terminal)
        shut(&c->port[INPUT]);
    else if (c->port[INPUT].fd >= 0)
        c->head = 0, c->tail = (uint32_t)terminal_end(c->port[INPUT].fd, c->last, c->input);
}

static ssize_t send_in(const struct channel *c)
{
    int fd = c->port[INPUT].fd;
    const unsigned char *bytes = c->input + c->head;
    size_t length = c->tail - c->head;
    return c->terminal ? terminal_write(fd, bytes, length) : write(fd, bytes, length);
}

static void feed(struct channel *c)
{
    while (c->head < c->tail || c->ended) {
        if (c->head == c->tail) {
            conclude(c);
            continue;
        }
        if (c->port[INPUT].fd < 0) { /* the command has closed its input: what comes is taken and forgotten */
            uint32_t rest = c->tail - c->head;
            c->head = c->tail;
            grant(c, rest);
            continue;
        }
        ssize_t n = send_in(c);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n < 0) {
            shut(&c->port[INPUT]);
            continue;
        }
        c->last = c->input[c->head + (uint32_t)n - 1];
        c->head += (uint32_t)n;
        grant(c, (uint32_t)n);
    }
}

static bool may_read(const struct channel *c, enum role role)
{
    return c->started && c->port[role].fd >= 0 && c->window && out_tail - out_head < OUT_DATA;
}

static void drain(struct channel *c, enum role role)
{
    struct port *port = &c->port[role];
    if (!may_read(c, role))
        return;
    size_t limit = c->window < PAYLOAD ? c->window : PAYLOAD;
    if (c->left[role] >= 0 && (size_t)c->left[role] < limit)
        limit = (size_t)c->left[role];
    ssize_t n = read(port->fd, reserve(PAYLOAD) + HEADER, limit);
    if (n > 0) {
        commit(role == OUTPUT ? STDOUT : STDERR, c->id, (size_t)n);
        c->window -= (uint64_t)n;
        if (c->left[role] >= 0)
            c->left[role] -= (int32_t)n;
    }
    /* EIO is a terminal's end: no process holds its other side. */
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) || c->left[role] == 0)
        shut(port);
}

/* The child said why it could not execute, or its silence says that it did. */
static void hear(struct channel *c)
{
    char text[1 + TEXT];
    ssize_t n = read(c->port[STATUS].fd, text, sizeof text - 1);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0) {
        text[n] = 0;
        fail(c->id, (unsigned char)text[0], text + 1);
        release(c); /* it leaves at once, and is reaped as an orphan is */
        return;
    }
    shut(&c->port[STATUS]);
    c->started = true;
    tell(OPENED, c->id, (uint32_t)c->pid);
}

/* The time of a drain or of a patience with SIGHUP is over. */
static void expire(struct channel *c)
{
    c->deadline = 0;
    if (c->pid) {
        notify(c, SIGKILL);
        return;
    }
    for (enum role role = OUTPUT; role <= ERRORS; role++) {
        int waiting = 0;
        if (c->port[role].fd < 0)
            continue;
        if (ioctl(c->port[role].fd, FIONREAD, &waiting) < 0)
            waiting = PAYLOAD; /* cannot be asked: a pipe's usual capacity */
        c->left[role] = waiting;
        if (!waiting)
            shut(&c->port[role]);
    }
}

/* Draw the conclusions of whatever happened to a channel. */
static void settle(struct channel *c)
{
    uint32_t slot = (uint32_t)(c - channels);
    if (!c->pid && c->started && c->port[OUTPUT].fd < 0 && c->port[ERRORS].fd < 0) {
        unsigned char *payload = reserve(5) + HEADER;
        payload[0] = WIFSIGNALED(c->status);
        put32(payload + 1, (uint32_t)(WIFSIGNALED(c->status) ? WTERMSIG(c->status) : WEXITSTATUS(c->status)));
        commit(EXIT, c->id, 5);
        release(c);
        return;
    }
    watch(&c->port[STATUS], EPOLLIN, slot, STATUS);
    watch(&c->port[INPUT], c->pid && c->head < c->tail ? EPOLLOUT : 0, slot, INPUT);
    watch(&c->port[OUTPUT], may_read(c, OUTPUT) ? EPOLLIN : 0, slot, OUTPUT);
    watch(&c->port[ERRORS], may_read(c, ERRORS) ? EPOLLIN : 0, slot, ERRORS);
}

/* ---- frames of the host ------------------------------------------------------------------------------------------ */

static void hang_up(struct channel *c)
{
    if (c->hung)
        return;
    c->hung = true;
    notify(c, SIGHUP);
    notify(c, SIGCONT); /* a stopped process does not hear the first */
    if (c->pid)
        c->deadline = now() + KILL_MS;
    for (enum role role = INPUT; role <= ERRORS; role++)
        shut(&c->port[role]);
}

static void take(struct channel *c, const unsigned char *payload, uint32_t length)
{
    if (length > c->room)
        broken("%u bytes for a window of %u", length, c->room);
    c->room -= length;
    if (c->ended || c->concluded) {
        if (length)
            broken("input after its end");
        return;
    }
    if (!length) {
        c->ended = true;
    } else if (c->port[INPUT].fd < 0) {
        grant(c, length);
        return;
    } else {
        if (c->head == c->tail)
            c->head = c->tail = 0;
        if (WINDOW - c->tail < length) {
            memmove(c->input, c->input + c->head, c->tail - c->head);
            c->tail -= c->head, c->head = 0;
        }
        memcpy(c->input + c->tail, payload, length);
        c->tail += length;
    }
    feed(c);
}

static void obey(enum kind kind, uint32_t id, unsigned char *payload, uint32_t length)
{
    struct channel *c = find(id);
    if (kind == OPEN) {
        if (c || !id)
            broken("channel %u is opened twice", id);
        if (leaving)
            fail(id, SANDBOX, "the sandbox is stopping");
        else if (parse(payload, length, &request))
            start(id);
        else
            fail(id, SANDBOX, "malformed request");
        return;
    }
    if (kind < OPEN || kind > CREDIT)
        broken("frame of kind %u", kind);
    static const uint32_t fixed[] = {[RESIZE] = 4, [SIGNAL] = 1, [HANGUP] = 0, [CREDIT] = 4};
    if (kind != STDIN && length != fixed[kind])
        broken("frame of kind %u and %u bytes", kind, length);
    if (!c) /* it has just ended, and the host does not know yet */
        return;
    switch (kind) {
    case STDIN: take(c, payload, length); break;
    case RESIZE:
        if (c->terminal && c->port[OUTPUT].fd >= 0) {
            struct winsize size = {.ws_row = payload[0] << 8 | payload[1], .ws_col = payload[2] << 8 | payload[3]};
            ioctl(c->port[OUTPUT].fd, TIOCSWINSZ, &size);
        }
        break;
    case SIGNAL:
        if (payload[0] > 0 && payload[0] <= SIGRTMAX)
            notify(c, payload[0]);
        break;
    case HANGUP: hang_up(c); break;
    case CREDIT:
        c->window += get32(payload);
        if (c->window > WINDOW)
            broken("a window of %llu bytes", (unsigned long long)c->window);
        break;
    default: break;
    }
}

static bool listening(void)
{
    return out_tail - out_head < OUT_PAUSE;
}

/* Read once from the link, and obey what is complete as long as its answers find room. */
static void receive(bool readable)
{
    size_t at = 0;
    if (readable && in_length < sizeof in) {
        ssize_t n = read(link_in.fd, in + in_length, sizeof in - in_length);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            end(0); /* the host has gone: nothing may outlive it */
        if (n > 0)
            in_length += (size_t)n;
    }
    while (in_length - at >= HEADER && listening()) {
        unsigned char *frame = in + at;
        uint32_t length = get32(frame + 8);
        if (frame[1] || frame[2] || frame[3] || length > PAYLOAD)
            broken("a header of kind %u and %u bytes", frame[0], length);
        if (in_length - at < HEADER + length)
            break;
        obey(frame[0], get32(frame + 4), frame + HEADER, length);
        at += HEADER + length;
    }
    if (at)
        memmove(in, in + at, in_length -= at);
}

static void send_out(void)
{
    while (out_head < out_tail) {
        ssize_t n = write(link_out.fd, out + out_head, out_tail - out_head);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0)
            end(0);
        out_head += (size_t)n;
    }
}

/* ---- the process --------------------------------------------------------------------------------------------------- */

static void reap(void)
{
    pid_t pid;
    int status;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        for (size_t i = 0; i < CHANNELS; i++) {
            struct channel *c = &channels[i];
            if (!c->id || c->pid != pid)
                continue;
            if (c->port[STATUS].fd >= 0)
                hear(c); /* its last word, if any, is already written */
            if (!c->id)
                continue;
            c->pid = 0;
            c->status = status;
            c->deadline = now() + DRAIN_MS;
        }
    childless = pid < 0;
}

/* A signal to the agent itself means: the sandbox is being stopped. Ask everyone, and leave when they have. */
static void leave(void)
{
    static const int numbers[] = {SIGTERM, SIGHUP, SIGCONT};
    leaving = true;
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) {
        for (size_t i = 0; i < CHANNELS; i++)
            notify(&channels[i], numbers[n]);
        if (getpid() == 1)
            kill(-1, numbers[n]);
    }
    reap();
}

static void hear_signals(void)
{
    struct signalfd_siginfo caught[16];
    ssize_t n;
    while ((n = read(signals.fd, caught, sizeof caught)) > 0)
        for (size_t i = 0; i < (size_t)n / sizeof *caught; i++)
            if (caught[i].ssi_signo == SIGCHLD)
                reap();
            else
                leave();
}

static int patience(void)
{
    int64_t next = 0, time;
    for (size_t i = 0; i < CHANNELS; i++)
        if (channels[i].id && channels[i].deadline && (!next || channels[i].deadline < next))
            next = channels[i].deadline;
    if (!next)
        return -1;
    time = now();
    return next > time ? (int)(next - time) : 0;
}

static void prepare(void)
{
    struct stat kind;
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigset_t ours;
    bool silent = fcntl(2, F_GETFD) < 0;
    close_from(3);
    if (fstat(0, &kind) < 0)
        die("no link on descriptor 0: %s", reason(errno));
    link_in.fd = fcntl(0, F_DUPFD_CLOEXEC, 3);
    link_out.fd = fcntl(S_ISSOCK(kind.st_mode) ? 0 : 1, F_DUPFD_CLOEXEC, 3);
    int nothing = open("/dev/null", O_RDWR);
    if (link_in.fd < 0 || link_out.fd < 0 || nothing < 0)
        die("cannot set up descriptors: %s", reason(errno));
    dup2(nothing, 0);
    dup2(nothing, 1);
    if (silent)
        dup2(nothing, 2);
    if (nothing > 2)
        close(nothing);
    fcntl(link_in.fd, F_SETFL, O_NONBLOCK);
    fcntl(link_out.fd, F_SETFL, O_NONBLOCK);
    /* Not by sigaction(), which refuses the two signals that the C library keeps for its threads: whoever was born by
     * posix_spawn, as every child of make is, finds those ignored and hands that on. To the kernel, the standard action
     * is 0, without flags and with an empty mask; the mask has 64 bits. */
    static const uint64_t standard[4] = {0};
    for (int number = 1; number < NSIG; number++)
        syscall(SYS_rt_sigaction, number, standard, NULL, sizeof *standard);
    sigaction(SIGPIPE, &ignore, NULL);
    sigemptyset(&no_signals);
    sigemptyset(&ours);
    sigaddset(&ours, SIGCHLD);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGINT);
    sigprocmask(SIG_SETMASK, &ours, NULL);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* where we are not the first process; harmless where we are */
    epoll = epoll_create1(EPOLL_CLOEXEC);
    signals.fd = signalfd(-1, &ours, SFD_CLOEXEC | SFD_NONBLOCK);
    if (epoll < 0 || signals.fd < 0)
        die("cannot set up the event loop: %s", reason(errno));
    petitions.fd = sudo_listen();
    watch(&signals, EPOLLIN, 0, SIGNALS);
    watch(&petitions, EPOLLIN, 0, PETITIONS);
}

static void __attribute__((noreturn)) serve(void)
{
    prepare();
    tell(HELLO, 0, VERSION);
    for (;;) {
        struct epoll_event events[64];
        bool readable = false, idle = true;
        send_out();
        receive(false); /* frames that had to wait for room are obeyed as soon as there is some */
        for (size_t i = 0; i < CHANNELS; i++)
            if (channels[i].id) {
                settle(&channels[i]);
                idle &= !channels[i].id;
            }
        size_t before = out_tail - out_head;
        send_out();
        if (leaving && childless && idle && out_head == out_tail)
            end(0);
        watch(&link_in, listening() ? EPOLLIN : 0, 0, LINK_IN);
        watch(&link_out, out_head < out_tail ? EPOLLOUT : 0, 0, LINK_OUT);
        /* What has just been sent may have made room that nothing else would tell of. */
        bool again = before >= OUT_DATA && out_tail - out_head < before;
        int count = epoll_wait(epoll, events, sizeof events / sizeof *events, again ? 0 : patience());
        if (count < 0 && errno != EINTR)
            die("epoll_wait: %s", reason(errno));
        for (int i = 0; i < count; i++) {
            struct channel *c = &channels[(events[i].data.u64 >> 32) % CHANNELS];
            enum role role = (enum role)(events[i].data.u64 & 0xff);
            switch (role) {
            case LINK_IN: readable = true; break;
            case SIGNALS: hear_signals(); break;
            case PETITIONS: sudo_accept(petitions.fd); break;
            case STATUS:
                if (c->id && c->port[STATUS].fd >= 0)
                    hear(c);
                break;
            case INPUT:
                if (c->id)
                    feed(c);
                break;
            case OUTPUT: case ERRORS:
                if (c->id)
                    drain(c, role);
                break;
            default: break;
            }
        }
        if (readable)
            receive(true);
        int64_t time = now();
        for (size_t i = 0; i < CHANNELS; i++)
            if (channels[i].id && channels[i].deadline && channels[i].deadline <= time)
                expire(&channels[i]);
    }
}

int main(int argc, char **argv)
{
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    if (argc && !strcmp(slash ? slash + 1 : argv[0], "sudo"))
        return sudo(argc, argv);
    if (argc > 1 && !strcmp(argv[1], "sudo"))
        return sudo(argc - 1, argv + 1);
    if (argc == 2 && !strcmp(argv[1], "agent"))
        serve();
    dprintf(2, "usage: sbx-agent agent | sbx-agent sudo [-u USER] [-EHn] [--] COMMAND [ARGUMENT...]\n");
    return 2;
}
