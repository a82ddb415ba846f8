/* Users and groups, read from /etc without name services: a static program has none, and a template may have no /etc. */
#ifndef IDENTITY_H
#define IDENTITY_H
#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

enum { GROUPS = 256 };

struct identity {
    uid_t uid;
    gid_t gid;
    gid_t groups[GROUPS];
    int count;
    char name[256], home[PATH_MAX], shell[PATH_MAX];
};

/* Parse `name`, `uid`, `name:group` or `uid:gid`; empty is whoever we are. As in `docker exec`, a number needs no entry
 * and then has group 0, and a group that is named is the only one. */
bool resolve(const char *spec, struct identity *who);

/* The entry of /etc/passwd of this name, or of this number when `name` is NULL. */
bool passwd(const char *name, uid_t uid, struct identity *who);

/* Give up everything that `who` is not. */
bool become(const struct identity *who);

#endif
