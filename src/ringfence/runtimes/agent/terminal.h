/* Terminals: a pair of ends, and what it takes to type at one. */
#ifndef TERMINAL_H
#define TERMINAL_H
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/types.h>

/* Make a terminal; returns the non-blocking master, or -1. */
int terminal_open(const struct winsize *size, int *slave);

/* Type. As write(2), but that a terminal in raw mode gets every byte. */
ssize_t terminal_write(int master, const unsigned char *bytes, size_t length);

/* What ends the input of a terminal after `last` was typed: up to two characters, none in raw mode. */
size_t terminal_end(int master, unsigned char last, unsigned char *characters);

#endif
