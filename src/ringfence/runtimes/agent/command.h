/* One command: what an OPEN frame asks for, and what stands between fork and its exec. */
#ifndef COMMAND_H
#define COMMAND_H
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

enum record { ARGUMENT = 1, VARIABLE, DIRECTORY, USER, TERMINAL, NO_INPUT };
enum failure { SANDBOX = 125, CANNOT_EXECUTE = 126, NOT_FOUND = 127 };
enum {
    PAYLOAD = 65536,
    RECORDS = PAYLOAD / 5,
    INHERITED = 1024, /* variables of the agent's own environment */
    DESCRIPTORS = 2048, /* more than the agent ever has */
    TEXT = 512,       /* a failure's text; shorter than PIPE_BUF, so that it is written whole */
};
extern const char DEFAULT_PATH[];

struct request {
    char *words[1 + RECORDS + 1]; /* words[0] is free for `search` */
    char *variables[RECORDS + INHERITED + 8];
    size_t argc, envc;
    const char *directory, *user;
    bool terminal, quiet; /* with a terminal; without standard input */
    struct winsize size;
};

uint32_t get32(const unsigned char *p);

/* Close every descriptor from this one on. */
void close_from(int first);

/* strerror in the house's lower case. */
const char *reason(int error);

/* Parse an OPEN payload; it is changed in place and has to stay while the request is used. */
bool parse(unsigned char *payload, size_t length, struct request *request);

/* In the child: become the command, or write a failure's code and text to `report`. */
void child(struct request *request, int report, const int std[3], const sigset_t *mask) __attribute__((noreturn));

/* As execvpe(3), which however looks along its caller's PATH; argv[-1] is ours to use. Returns what went wrong. */
int search(char **argv, char **envp, const char *path);

#endif
