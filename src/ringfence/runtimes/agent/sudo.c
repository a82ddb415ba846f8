/* Whoever may run it may become anyone, without a password: inside a sandbox that is the rule, and root inside is nobody
 * outside. Unlike the real one it keeps the caller's PATH and proxy variables, which are the only way out.
 *
 * Where a set-user-id bit counts, sudo becomes the user itself. Where it does not (gVisor up to 2024 ignores it) it asks
 * the agent: the request is the payload of an OPEN frame on a local socket, with descriptors 0, 1 and 2. The agent forks
 * a process for it, which starts the command on them, passes on what signals sudo gets, hangs up when sudo is gone, and
 * answers how the command ended, so that sudo can end alike. The socket is abstract and answers the sandbox's own
 * processes only: others have no process id in here. */
#define _GNU_SOURCE
#include "sudo.h"
#include "command.h"
#include "identity.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct sockaddr_un place = {.sun_family = AF_UNIX, .sun_path = "\0ringfence/sudo"};
static const socklen_t place_length = offsetof(struct sockaddr_un, sun_path) + sizeof "\0ringfence/sudo" - 1;
enum answer { EXITED, SIGNALLED, FAILED }; /* then a number, and the text of a failure */
enum { PATIENCE_S = 10, KILL_MS = 5000 };

static int refuse(const char *text, const char *about)
{
    dprintf(2, "sudo: %s%s%s%s\n", text, *about ? " `" : "", about, *about ? "`" : "");
    return 1;
}

/* ---- asking ------------------------------------------------------------------------------------------------- */

static bool add(unsigned char *payload, size_t *length, enum record tag, const char *text)
{
    size_t size = strlen(text);
    if (PAYLOAD - *length < 5 + size)
        return false;
    payload[*length] = tag;
    for (int i = 0; i < 4; i++)
        payload[*length + 1 + (size_t)i] = (unsigned char)(size >> (24 - 8 * i));
    memcpy(payload + *length + 5, text, size);
    *length += 5 + size;
    return true;
}

static ssize_t send_with_streams(int connection, void *payload, size_t length)
{
    char space[CMSG_SPACE(3 * sizeof(int))] = {0};
    struct iovec part = {.iov_base = payload, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(3 * sizeof(int));
    memcpy(CMSG_DATA(header), (int[]){0, 1, 2}, 3 * sizeof(int));
    return sendmsg(connection, &message, MSG_NOSIGNAL);
}

/* Pass on our signals until the answer comes, and end as the command did. */
static int follow(int connection, int signals, const sigset_t *usual)
{
    unsigned char answer[2 + TEXT];
    struct signalfd_siginfo caught;
    struct pollfd ready[] = {{.fd = connection, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    for (;;) {
        poll(ready, 2, -1);
        if (ready[1].revents && read(signals, &caught, sizeof caught) == sizeof caught) {
            send(connection, &(unsigned char){(unsigned char)caught.ssi_signo}, 1, MSG_NOSIGNAL);
            if (caught.ssi_signo == SIGTSTP)
                raise(SIGSTOP);
        }
        if (!ready[0].revents)
            continue;
        ssize_t n = recv(connection, answer, sizeof answer - 1, 0);
        if (n < 2)
            return refuse("the agent is gone", "");
        answer[n] = 0;
        if (answer[0] == FAILED)
            dprintf(2, "sudo: %s\n", answer + 2);
        if (answer[0] != SIGNALLED)
            return answer[1];
        sigprocmask(SIG_SETMASK, usual, NULL);
        raise(answer[1]);
        return 128 + answer[1];
    }
}

static int ask(const char *user, char **argv)
{
    static unsigned char payload[PAYLOAD];
    static char directory[PATH_MAX];
    static const int forwarded[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGWINCH, SIGTSTP,
                                    SIGCONT};
    sigset_t ours, usual;
    size_t length = 0;
    int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (connection < 0 || connect(connection, (const struct sockaddr *)&place, place_length) < 0)
        return refuse("not possible in this sandbox; outside, `sbx exec -u root` is", "");
    bool fits = add(payload, &length, USER, user)
        && add(payload, &length, DIRECTORY, getcwd(directory, sizeof directory) ? directory : "/");
    for (; fits && *argv; argv++)
        fits = add(payload, &length, ARGUMENT, *argv);
    for (char **entry = environ; fits && *entry; entry++)
        fits = strchr(*entry, '=') <= *entry || add(payload, &length, VARIABLE, *entry);
    if (!fits)
        return refuse("the arguments and the environment are longer than 64 KiB together", "");
    sigemptyset(&ours);
    for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++)
        sigaddset(&ours, forwarded[i]);
    sigprocmask(SIG_BLOCK, &ours, &usual);
    int signals = signalfd(-1, &ours, SFD_CLOEXEC);
    if (signals < 0 || send_with_streams(connection, payload, length) < 0)
        return refuse("cannot ask the agent", "");
    return follow(connection, signals, &usual);
}

/* ---- granting ----------------------------------------------------------------------------------------------- */

int sudo_listen(void)
{
    int listener;
    if (getpid() != 1) /* not a sandbox of its own, but somebody's machine */
        return -1;
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener >= 0 && !bind(listener, (const struct sockaddr *)&place, place_length) && !listen(listener, 64))
        return listener;
    if (listener >= 0)
        close(listener);
    return -1;
}

static bool receive_streams(int connection, unsigned char *payload, size_t *length, int std[3])
{
    char space[CMSG_SPACE(3 * sizeof(int))];
    struct iovec part = {.iov_base = payload, .iov_len = PAYLOAD};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    ssize_t n = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = n > 0 ? CMSG_FIRSTHDR(&message) : NULL;
    if (!header || message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || header->cmsg_type != SCM_RIGHTS
        || header->cmsg_len != CMSG_LEN(3 * sizeof(int)))
        return false;
    memcpy(std, CMSG_DATA(header), 3 * sizeof(int));
    *length = (size_t)n;
    return true;
}

static void __attribute__((noreturn)) reply(int connection, enum answer kind, int number, const char *text)
{
    unsigned char answer[2 + TEXT] = {kind, (unsigned char)number};
    size_t length = strnlen(text, TEXT);
    memcpy(answer + 2, text, length);
    send(connection, answer, 2 + length, MSG_NOSIGNAL);
    _exit(0);
}

/* Until the command is over: pass on its signals; hang up when nobody waits for it any more. */
static void __attribute__((noreturn)) tend(int connection, int report, int children, pid_t pid)
{
    char text[1 + TEXT];
    unsigned char number;
    int status, patience = -1;
    struct pollfd ready[] = {
        {.fd = children, .events = POLLIN}, {.fd = connection, .events = POLLIN}, {.fd = report, .events = POLLIN}};
    for (;;) {
        if (poll(ready, 3, patience) == 0)
            kill(-pid, SIGKILL);
        if (ready[2].revents) {
            ssize_t n = read(report, text, sizeof text - 1);
            ready[2].fd = -1; /* poll passes over it */
            if (n > 0) {
                text[n] = 0;
                reply(connection, FAILED, (unsigned char)text[0], text + 1);
            }
        }
        if (ready[0].revents && waitpid(pid, &status, WNOHANG) == pid && ready[2].fd < 0)
            reply(connection, WIFSIGNALED(status) ? SIGNALLED : EXITED,
                  WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), "");
        if (!ready[1].revents)
            continue;
        if (recv(connection, &number, 1, 0) == 1) {
            kill(-pid, number);
            continue;
        }
        ready[1].fd = -1, patience = KILL_MS;
        kill(-pid, SIGHUP);
        kill(-pid, SIGCONT);
    }
}

static void __attribute__((noreturn)) grant(int connection)
{
    static unsigned char payload[PAYLOAD];
    static struct request request;
    struct ucred peer = {0};
    struct timeval patience = {.tv_sec = PATIENCE_S};
    socklen_t size = sizeof peer;
    size_t length;
    int std[3], report[2];
    struct sigaction ends = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDSTOP};
    sigset_t none, chld;
    pid_t pid;
    sigemptyset(&none);
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigaction(SIGCHLD, &ends, NULL);
    sigprocmask(SIG_SETMASK, &chld, NULL);
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0 || peer.pid <= 0)
        _exit(1);
    if (!receive_streams(connection, payload, &length, std) || !parse(payload, length, &request))
        reply(connection, FAILED, SANDBOX, "malformed request");
    int children = signalfd(-1, &chld, SFD_CLOEXEC);
    if (children < 0 || pipe2(report, O_CLOEXEC) < 0 || (pid = fork()) < 0)
        reply(connection, FAILED, SANDBOX, "cannot make a process");
    if (!pid)
        child(&request, report[1], std, &none);
    close(report[1]);
    for (int i = 0; i < 3; i++)
        close(std[i]);
    tend(connection, report[0], children, pid);
}

void sudo_accept(int listener)
{
    int connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (connection < 0)
        return;
    if (fork() == 0) {
        dup3(connection, 3, O_CLOEXEC);
        close_from(4); /* the link and the streams of others are not its business */
        grant(3);
    }
    close(connection);
}

/* ---- the command -------------------------------------------------------------------------------------------- */

static void number(const char *name, unsigned value)
{
    char text[16];
    snprintf(text, sizeof text, "%u", value);
    setenv(name, text, 1);
}

static int become_and_execute(const struct identity *who, const char *user, char **argv)
{
    const char *path = getenv("PATH");
    if (!become(who))
        return refuse("cannot become", user);
    int error = search(argv, environ, path ? path : DEFAULT_PATH);
    dprintf(2, "sudo: %s: %s\n", argv[0], error == ENOENT ? "command not found" : reason(error));
    return error == ENOENT ? NOT_FOUND : CANNOT_EXECUTE;
}

int sudo(int argc, char **argv)
{
    static struct identity who, caller;
    const char *user = "root";
    bool keep = false;
    int option;
    while ((option = getopt(argc, argv, "+u:EHn")) != -1)
        switch (option) {
        case 'u': user = optarg; break;
        case 'E': keep = true; break;
        case 'H':
        case 'n': break;
        default: return 1;
        }
    for (; optind < argc && strchr(argv[optind], '=') > argv[optind]; optind++)
        putenv(argv[optind]);
    if (optind >= argc)
        return refuse("usage: sudo [-u USER] [-EHn] [--] [NAME=VALUE...] COMMAND [ARGUMENT...]", "");
    if (!*user || !resolve(user, &who))
        return refuse("no user", user);
    if (passwd(NULL, getuid(), &caller))
        setenv("SUDO_USER", caller.name, 1);
    number("SUDO_UID", getuid());
    number("SUDO_GID", getgid());
    if (!keep) {
        setenv("HOME", who.home, 1);
        setenv("SHELL", who.shell, 1);
        setenv("USER", who.name, 1);
        setenv("LOGNAME", who.name, 1);
    }
    return geteuid() ? ask(user, argv + optind) : become_and_execute(&who, user, argv + optind);
}
