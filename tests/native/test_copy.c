/* Copy drafts against a search of everything: the same match in random, repetitive and periodic sequences, however the
 * look-ups fall. */
#include "check.h"
#include "draft/copy.h"
#include "random.h"

enum { N_CTX = 600 };

static int common_suffix(const int32_t *tokens, int earlier, int later) {
    int length = 0;
    while (length <= earlier && length < COPY_LONGEST && tokens[earlier - length] == tokens[later - length]) length++;
    return length;
}

/* By its description: all places are looked at, from the latest to the first. */
static CopyMatch search(const int32_t *tokens, int n) {
    for (int shortest = 3; shortest >= 2; shortest--) {
        CopyMatch best = {0, 0};
        int candidates = 0;
        for (int place = n - 2; place >= 0 && candidates < COPY_CANDIDATES; place--) {
            const int length = common_suffix(tokens, place, n - 1);
            candidates += length >= shortest;
            if (length >= shortest && length > best.length) best = (CopyMatch){length, place + 1};
        }
        if (best.length) return best;
    }
    return (CopyMatch){0, 0};
}

static bool same_match(CopyMatch a, CopyMatch b) { return a.length == b.length && (!a.length || a.next == b.next); }

/* Tokens of a sequence of one kind: few ids, many, pieces of itself, a period with errors. */
static int32_t next_token(Random *random, const int32_t *tokens, int n, int kind) {
    switch (kind) {
    case 0: return random_below(random, 3);
    case 1: return random_below(random, 40);
    case 2: return random_below(random, 1 << 30);
    case 3: return n > 10 && random_below(random, 12) ? tokens[n - 10] : random_below(random, 5);
    default: return n && random_below(random, 8) ? tokens[random_below(random, n)] : n;
    }
}

static void test_against_search(void) {
    Random random = {31};
    CopyIndex index;
    CHECK(copy_index_new(&index, N_CTX));
    int found = 0, none = 0, longest = 0;
    for (int round = 0; round < 60; round++) {
        int32_t tokens[N_CTX];
        const int length = 1 + random_below(&random, N_CTX), stride = 1 + random_below(&random, 7);
        copy_index_clear(&index);
        for (int n = 0; n < length;) {
            for (int i = 0; i < stride && n < length; i++, n++) tokens[n] = next_token(&random, tokens, n, round % 5);
            const CopyMatch expected = search(tokens, n), match = copy_find(&index, tokens, n);
            if (!CHECK(same_match(match, expected)))
                printf("    round %d, %d tokens: %d at %d, not %d at %d\n", round, n, match.length, match.next,
                       expected.length, expected.next);
            CHECK(same_match(copy_find(&index, tokens, n), expected)); /* asked again */
            found += match.length > 0;
            none += match.length == 0;
            if (match.length > longest) longest = match.length;
        }
    }
    CHECK(found > 1000 && none > 1000 && longest == COPY_LONGEST);
    copy_index_free(&index);
}

/* A cleared index knows nothing of the sequence before, and tokens beyond a rejected draft were never in it. */
static void test_another_sequence(void) {
    const int32_t first[] = {1, 2, 3, 4, 5, 1, 2, 3}, second[] = {7, 1, 2, 3, 9, 8};
    CopyIndex index;
    CHECK(copy_index_new(&index, 8));
    CHECK(same_match(copy_find(&index, first, 8), (CopyMatch){3, 3}));
    copy_index_clear(&index);
    CHECK_EQ(copy_find(&index, second, 4).length, 0);
    CHECK_EQ(copy_find(&index, second, 6).length, 0);
    copy_index_free(&index);
    copy_index_free(&index);
}

static void test_tokens(void) {
    const int32_t tokens[] = {5, 6, 7, 8, 9, 6, 7};
    CopyIndex index;
    CHECK(copy_index_new(&index, 7));
    const CopyMatch match = copy_find(&index, tokens, 7);
    CHECK(match.length == 2 && match.next == 3);
    /* 8 9 6 7, and then what it wrote itself */
    const int32_t expected[] = {8, 9, 6, 7, 8, 9, 6, 7, 8, 9, 6, 7, 8, 9, 6};
    for (int i = 0; i < 15; i++) CHECK_EQ(copy_token(tokens, 7, match, i), expected[i]);
    const int32_t same[] = {4, 4, 4, 4};
    copy_index_clear(&index);
    CHECK(same_match(copy_find(&index, same, 4), (CopyMatch){3, 3}));
    CHECK_EQ(copy_token(same, 4, (CopyMatch){3, 3}, 14), 4);
    copy_index_free(&index);
}

int main(void) {
    test_against_search();
    test_another_sequence();
    test_tokens();
    return check_report();
}
