/* Assertions for the C tests. A failed check is printed with its place and the test goes on; `return check_report();`
 * at the end of main prints "N passed, M failed" as the last line and gives the exit status. Checks are counted
 * without locks: make them from one thread. */
#ifndef BEE_TESTS_CHECK_H
#define BEE_TESTS_CHECK_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static long check_passed, check_failed;

static inline bool check_record(bool holds, const char *file, int line, const char *expression) {
    if (holds) {
        check_passed++;
    } else {
        check_failed++;
        printf("%s:%d: failed: %s\n", file, line, expression);
    }
    return holds;
}

static inline bool check_integers(long long left, long long right, const char *file, int line, const char *expression) {
    bool holds = check_record(left == right, file, line, expression);
    if (!holds) printf("    %lld (0x%llx) != %lld (0x%llx)\n", left, left, right, right);
    return holds;
}

static inline bool check_doubles(double left, double right, double tolerance, const char *file, int line,
                                 const char *expression) {
    bool holds = check_record(fabs(left - right) <= tolerance, file, line, expression); /* false for NaN */
    if (!holds) printf("    %.17g and %.17g are more than %g apart\n", left, right, tolerance);
    return holds;
}

static inline bool check_texts(const char *left, const char *right, const char *file, int line,
                               const char *expression) {
    bool holds = check_record(left && right && strcmp(left, right) == 0, file, line, expression);
    if (!holds) printf("    \"%s\" != \"%s\"\n", left ? left : "(null)", right ? right : "(null)");
    return holds;
}

static inline bool check_contains(const char *text, const char *part, const char *file, int line,
                                  const char *expression) {
    bool holds = check_record(text && part && strstr(text, part), file, line, expression);
    if (!holds) printf("    \"%s\" does not contain \"%s\"\n", text ? text : "(null)", part ? part : "(null)");
    return holds;
}

/* Each gives whether it held, so that a test can stop where going on makes no sense. */
#define CHECK(condition) check_record((condition), __FILE__, __LINE__, #condition)
#define CHECK_EQ(left, right) \
    check_integers((long long)(left), (long long)(right), __FILE__, __LINE__, #left " == " #right)
#define CHECK_NEAR(left, right, tolerance) \
    check_doubles((left), (right), (tolerance), __FILE__, __LINE__, #left " ~ " #right)
#define CHECK_TEXT(left, right) check_texts((left), (right), __FILE__, __LINE__, #left " == " #right)
#define CHECK_CONTAINS(text, part) check_contains((text), (part), __FILE__, __LINE__, #text " contains " #part)

/* A test that checked nothing has failed. */
static inline int check_report(void) {
    printf("%ld passed, %ld failed\n", check_passed, check_failed);
    return check_failed > 0 || check_passed == 0;
}

#endif
