#define _GNU_SOURCE
#include "identity.h"
#include <errno.h>
#include <grp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool decimal(const char *text, uint32_t *number)
{
    uint64_t value = 0;
    if (!*text || strlen(text) > 10)
        return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return false;
        value = value * 10 + (uint64_t)(*text - '0');
    }
    *number = (uint32_t)value;
    return value < UINT32_MAX; /* (uid_t)-1 means "leave it" to setresuid */
}

/* Cut a line of passwd(5) or group(5) at its colons; false when it has fewer fields. */
static bool fields(char *line, char **field, int count)
{
    line[strcspn(line, "\n")] = 0;
    for (int i = 0; i < count; i++) {
        if (!line)
            return false;
        field[i] = strsep(&line, ":");
    }
    return true;
}

bool passwd(const char *name, uid_t uid, struct identity *who)
{
    FILE *file = fopen("/etc/passwd", "re");
    char *line = NULL, *field[7];
    size_t size = 0;
    uint32_t id, group;
    bool found = false;
    while (file && !found && getline(&line, &size, file) > 0) {
        if (!fields(line, field, 7) || !decimal(field[2], &id) || !decimal(field[3], &group))
            continue;
        if (name ? strcmp(name, field[0]) : id != uid)
            continue;
        who->uid = id, who->gid = group, found = true;
        snprintf(who->name, sizeof who->name, "%s", field[0]);
        snprintf(who->home, sizeof who->home, "%s", *field[5] ? field[5] : "/");
        snprintf(who->shell, sizeof who->shell, "%s", *field[6] ? field[6] : "/bin/sh");
    }
    free(line);
    if (file)
        fclose(file);
    return found;
}

/* Find the group called `name`, or collect the groups that `who` is a member of (`name` is NULL). */
static bool groups(const char *name, struct identity *who)
{
    FILE *file = fopen("/etc/group", "re");
    char *line = NULL, *field[4], *member;
    size_t size = 0;
    uint32_t id;
    bool found = false;
    while (file && !found && getline(&line, &size, file) > 0) {
        if (!fields(line, field, 4) || !decimal(field[2], &id))
            continue;
        if (name) {
            if ((found = !strcmp(name, field[0])))
                who->gid = id;
            continue;
        }
        while ((member = strsep(&field[3], ",")))
            if (*member && !strcmp(member, who->name) && id != who->gid && who->count < GROUPS)
                who->groups[who->count++] = id;
    }
    free(line);
    if (file)
        fclose(file);
    return found;
}

bool resolve(const char *spec, struct identity *who)
{
    char user[256];
    const char *group = strchr(spec, ':');
    uint32_t number;
    if (snprintf(user, sizeof user, "%.*s", group ? (int)(group - spec) : (int)strlen(spec), spec) >= (int)sizeof user)
        return false;
    memset(who, 0, sizeof *who);
    strcpy(who->home, "/");
    strcpy(who->shell, "/bin/sh");
    if (!*spec) {
        if (!passwd(NULL, geteuid(), who))
            who->uid = geteuid();
        who->gid = getegid();
        who->count = getgroups(GROUPS, who->groups);
        if (who->count < 0)
            who->count = 0;
        return true;
    }
    if (!passwd(user, 0, who)) {
        if (decimal(user, &number)) {
            if (!passwd(NULL, number, who))
                who->uid = number;
        } else if (!strcmp(user, "root")) {
            strcpy(who->name, "root");
            strcpy(who->home, "/root");
        } else {
            return false;
        }
    }
    if (!group)
        return groups(NULL, who), true;
    if (decimal(group + 1, &number))
        return who->gid = number, true;
    return groups(group + 1, who);
}

bool become(const struct identity *who)
{
    gid_t set[1 + GROUPS] = {who->gid};
    bool already = who->uid == geteuid() && who->gid == getegid();
    memcpy(set + 1, who->groups, (size_t)who->count * sizeof(gid_t));
    /* Inside a user namespace that maps one user, setgroups is refused even for what we are. */
    if (setgroups((size_t)who->count + 1, set) < 0 && !(errno == EPERM && already))
        return false;
    return !setresgid(who->gid, who->gid, who->gid) && !setresuid(who->uid, who->uid, who->uid);
}
