/* gVisor (at least up to 2024) sends the signals of ^C, ^\ and ^Z although ISIG is off, which kills an editor or an agent
 * that reads them as keys. Whether this kernel does is found out by trying, before the first terminal. Where it does,
 * those three characters are parked while ISIG is off: all on a byte that no UTF-8 text and no key has. */
#define _GNU_SOURCE
#include "terminal.h"
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { PARKED = 0xff };
static enum { UNTRIED, HONEST, DEAF } isig = UNTRIED;

static int pair(int *slave)
{
    char path[32];
    int number, off = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0)
        master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0)
        return -1;
    if (ioctl(master, TIOCSPTLCK, &off) < 0 || ioctl(master, TIOCGPTN, &number) < 0)
        return close(master), -1;
    snprintf(path, sizeof path, "/dev/pts/%d", number);
    if ((*slave = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0)
        return close(master), -1;
    return master;
}

/* Let a process type ^C at its own terminal, which is raw, and see what it dies of. */
static void try_isig(void)
{
    int slave, status = 0, master = pair(&slave);
    struct termios raw;
    sigset_t none;
    pid_t pid;
    isig = HONEST;
    if (master < 0)
        return;
    if ((pid = fork()) == 0) {
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        setsid();
        tcgetattr(slave, &raw);
        cfmakeraw(&raw);
        tcsetattr(slave, TCSANOW, &raw);
        ioctl(slave, TIOCSCTTY, 0);
        _exit(write(master, "\3", 1) != 1);
    }
    if (pid > 0 && waitpid(pid, &status, 0) == pid && WIFSIGNALED(status))
        isig = DEAF;
    close(slave);
    close(master);
}

int terminal_open(const struct winsize *size, int *slave)
{
    struct termios mode;
    int master;
    if (isig == UNTRIED)
        try_isig();
    if ((master = pair(slave)) < 0)
        return -1;
    ioctl(master, TIOCSWINSZ, size);
    if (!tcgetattr(*slave, &mode)) {
        mode.c_iflag |= IUTF8;
        tcsetattr(*slave, TCSANOW, &mode);
    }
    return master;
}

ssize_t terminal_write(int master, const unsigned char *bytes, size_t length)
{
    static const cc_t usual[] = {003, 034, 032}, parked[] = {PARKED, PARKED, PARKED};
    struct termios mode;
    if (isig == DEAF && !tcgetattr(master, &mode)) {
        bool signals = mode.c_lflag & ISIG;
        if (signals == (mode.c_cc[VINTR] == PARKED)) {
            const cc_t *now = signals ? usual : parked;
            mode.c_cc[VINTR] = now[0], mode.c_cc[VQUIT] = now[1], mode.c_cc[VSUSP] = now[2];
            tcsetattr(master, TCSANOW, &mode);
        }
    }
    return write(master, bytes, length);
}

size_t terminal_end(int master, unsigned char last, unsigned char *characters)
{
    struct termios mode;
    if (tcgetattr(master, &mode) < 0 || !(mode.c_lflag & ICANON))
        return 0;
    /* Where a line has begun, the first one only ends the line. */
    characters[0] = characters[1] = mode.c_cc[VEOF];
    return last == '\n' ? 1 : 2;
}
