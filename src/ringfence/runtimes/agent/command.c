#define _GNU_SOURCE
#include "command.h"
#include "identity.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

const char DEFAULT_PATH[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

uint32_t get32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

void close_from(int first)
{
    if (syscall(SYS_close_range, (unsigned)first, ~0U, 0U) < 0) /* gVisor up to 2024 */
        for (int fd = first; fd < DESCRIPTORS; fd++)
            close(fd);
}

const char *reason(int error)
{
    static char text[128];
    snprintf(text, sizeof text, "%s", strerror(error));
    if (text[0] >= 'A' && text[0] <= 'Z' && !(text[1] >= 'A' && text[1] <= 'Z'))
        text[0] += 'a' - 'A';
    return text;
}

/* A record's header is longer than a string's terminator, so strings are ended in place, moved down. */
bool parse(unsigned char *p, size_t length, struct request *request)
{
    unsigned char *stop = p + length, *to = p;
    request->argc = request->envc = 0;
    request->directory = request->user = "";
    request->terminal = request->quiet = false;
    while (p < stop) {
        if (stop - p < 5 || get32(p + 1) > (size_t)(stop - p - 5))
            return false;
        enum record tag = p[0];
        uint32_t size = get32(p + 1);
        char *text = (char *)to;
        p += 5;
        if (tag == TERMINAL) {
            if (size != 4)
                return false;
            request->terminal = true;
            request->size = (struct winsize){.ws_row = p[0] << 8 | p[1], .ws_col = p[2] << 8 | p[3]};
        } else if (memchr(p, 0, size)) {
            return false;
        }
        memmove(to, p, size);
        to[size] = 0;
        to += size + 1, p += size;
        switch (tag) {
        case ARGUMENT: request->words[1 + request->argc++] = text; break;
        case VARIABLE:
            if (!strchr(text, '=') || *text == '=')
                return false;
            request->variables[request->envc++] = text;
            break;
        case DIRECTORY: request->directory = text; break;
        case USER: request->user = text; break;
        case TERMINAL: break;
        case NO_INPUT:
            if (size)
                return false;
            request->quiet = true;
            break;
        default: return false;
        }
    }
    request->words[1 + request->argc] = NULL;
    return request->argc > 0;
}

static const char *lookup(char **envp, const char *name)
{
    size_t length = strlen(name);
    for (; *envp; envp++)
        if (!strncmp(*envp, name, length) && (*envp)[length] == '=')
            return *envp + length + 1;
    return NULL;
}

static void assign(struct request *request, const char *name, const char *value)
{
    char *text;
    if (!lookup(request->variables, name) && *value && asprintf(&text, "%s=%s", name, value) >= 0) {
        request->variables[request->envc++] = text;
        request->variables[request->envc] = NULL;
    }
}

/* The host's variables, then the agent's but for those that say who it is, then what a command may expect. */
static void furnish(struct request *request, const struct identity *who)
{
    static const char *const own[] = {"HOME", "USER", "LOGNAME", "SHELL"};
    size_t given = request->envc;
    for (char **entry = environ; *entry && request->envc < given + INHERITED; entry++) {
        size_t length = strcspn(*entry, "=");
        bool skip = !(*entry)[length];
        for (size_t i = 0; i < sizeof own / sizeof *own; i++)
            skip |= strlen(own[i]) == length && !memcmp(own[i], *entry, length);
        for (size_t i = 0; i < given && !skip; i++)
            skip = !strncmp(request->variables[i], *entry, length + 1);
        if (!skip)
            request->variables[request->envc++] = *entry;
    }
    request->variables[request->envc] = NULL;
    assign(request, "HOME", who->home);
    assign(request, "USER", who->name);
    assign(request, "LOGNAME", who->name);
    assign(request, "SHELL", who->shell);
    assign(request, "PATH", DEFAULT_PATH);
    if (request->terminal)
        assign(request, "TERM", "xterm");
}

static void attempt(const char *file, char **argv, char **envp)
{
    execve(file, argv, envp);
    if (errno == ENOEXEC) { /* a script without `#!` */
        char *name = argv[0];
        argv[-1] = "/bin/sh";
        argv[0] = (char *)file;
        execve("/bin/sh", argv - 1, envp);
        argv[0] = name;
    }
}

int search(char **argv, char **envp, const char *path)
{
    int kept = ENOENT;
    if (!*argv[0])
        return ENOENT;
    if (strchr(argv[0], '/')) {
        attempt(argv[0], argv, envp);
        return errno;
    }
    for (const char *end;; path = end + 1) {
        char file[PATH_MAX];
        end = strchrnul(path, ':');
        int length = snprintf(file, sizeof file, "%.*s%s%s", (int)(end - path), path, end > path ? "/" : "", argv[0]);
        if (length > 0 && length < (int)sizeof file) {
            attempt(file, argv, envp);
            if (errno == EACCES)
                kept = access(file, F_OK) ? kept : EACCES; /* not for a directory that may not be entered */
            else if (errno != ENOENT && errno != ENOTDIR)
                return errno;
        }
        if (!*end)
            return kept;
    }
}

/* Each returns 0 or the code to leave with, and then has written why to `text`. */
static int settle_in(struct request *request, const struct identity *who, char *text)
{
    if (request->terminal) {
        ioctl(0, TIOCSCTTY, 0);
        /* Refused in a user namespace that maps one user; then it is that user's already. */
        (void)!fchown(0, who->uid, (gid_t)-1);
    }
    if (!become(who))
        snprintf(text, TEXT, "cannot become user `%s`: %s", request->user, reason(errno));
    else if (*request->directory && chdir(request->directory) < 0)
        snprintf(text, TEXT, "cannot enter `%s`: %s", request->directory, reason(errno));
    else if (!*request->directory && chdir(who->home) < 0 && chdir("/") < 0)
        snprintf(text, TEXT, "cannot enter `/`: %s", reason(errno));
    else
        return 0;
    return CANNOT_EXECUTE;
}

static int execute(struct request *request, char *text)
{
    char **argv = request->words + 1;
    const char *path = lookup(request->variables, "PATH");
    int error = search(argv, request->variables, path ? path : DEFAULT_PATH);
    if (error == ENOENT || error == ENOTDIR) {
        snprintf(text, TEXT, "command `%s` not found", argv[0]);
        return NOT_FOUND;
    }
    snprintf(text, TEXT, "cannot execute `%s`: %s", argv[0], reason(error));
    return CANNOT_EXECUTE;
}

void child(struct request *request, int report, const int std[3], const sigset_t *mask)
{
    static struct identity who;
    char message[1 + TEXT];
    struct sigaction standard = {.sa_handler = SIG_DFL};
    int code = CANNOT_EXECUTE;
    setsid();
    for (int fd = 0; fd < 3; fd++)
        dup2(std[fd], fd); /* never onto itself: the agent's 0, 1 and 2 are taken */
    if (report != 3)
        dup3(report, 3, O_CLOEXEC);
    /* All is close-on-exec, but what follows may hang, and should not hold the streams of other commands open. Where there
     * is no such call it may: closing one by one would cost every command milliseconds. */
    syscall(SYS_close_range, 4U, ~0U, 0U);
    sigaction(SIGPIPE, &standard, NULL);
    sigprocmask(SIG_SETMASK, mask, NULL);
    umask(022);
    if (!resolve(request->user, &who)) {
        snprintf(message + 1, TEXT, "no user or group `%s` in the sandbox", request->user);
    } else {
        furnish(request, &who);
        if (!(code = settle_in(request, &who, message + 1)))
            code = execute(request, message + 1);
    }
    message[0] = (char)code;
    (void)!write(3, message, 1 + strlen(message + 1));
    _exit(code);
}
