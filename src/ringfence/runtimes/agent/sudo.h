/* A small sudo for templates that have none: the command, and the part of the agent that grants it. */
#ifndef SUDO_H
#define SUDO_H

int sudo(int argc, char **argv);

/* The socket on which commands ask the first process; -1 where there can be none. */
int sudo_listen(void);

/* Take a request from it: forks a process that serves it to its end. */
void sudo_accept(int listener);

#endif
