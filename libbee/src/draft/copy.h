/* Drafts without a model: what followed the last tokens when they stood in the sequence before.
 *
 * Answers that quote, edit or continue a text repeat long stretches of it. The longest suffix of the sequence that
 * occurred before is looked up, and the tokens after that occurrence are proposed. */
#ifndef BEE_COPY_DRAFT_H
#define BEE_COPY_DRAFT_H

#include "source.h"

extern const DraftSource copy_source;

enum {
    COPY_SHORTEST = 2,    /* tokens of the shortest match */
    COPY_LONGEST = 64,    /* tokens compared; beyond that, a match is as good as one can be */
    COPY_CANDIDATES = 32, /* earlier places compared, the latest ones */
};

/* Places of every pair and of every triple of tokens: a place is the position of its last token. `latest` has the last
 * place of a bucket, `before` the one before it in the same bucket; -1 ends a chain. Places only grow along a sequence,
 * so a token is added in constant time; for another sequence the index is cleared. */
typedef struct CopyIndex {
    int32_t *latest[2]; /* [n_buckets], for pairs and for triples */
    int32_t *before[2]; /* [n_ctx] */
    uint32_t n_buckets; /* a power of two */
    int n;              /* tokens that are in the index */
} CopyIndex;

/* Tokens [next, ...) follow an earlier occurrence of the last `length` tokens; length 0: there is none. */
typedef struct CopyMatch {
    int length;
    int next;
} CopyMatch;

/* For sequences of up to n_ctx tokens; false where memory runs out. A zeroed index may be freed. */
bool copy_index_new(CopyIndex *index, int n_ctx);
void copy_index_free(CopyIndex *index);

/* Before the first look-up in a new sequence. */
void copy_index_clear(CopyIndex *index);

/* The longest match, the latest among equals, of the COPY_CANDIDATES latest places of the last three tokens; where
 * these are new, of the last two. Adds tokens that came since the last look-up in this sequence. */
CopyMatch copy_find(CopyIndex *index, const int32_t *tokens, int n);

/* The i-th token after a match in a sequence of n. Where the copy reaches the end it goes on with itself, as periodic
 * text does. */
int32_t copy_token(const int32_t *tokens, int n, CopyMatch match, int i);

/* Chances of a copy are told apart by the length of the match that a token would make longer. */
enum { COPY_CLASSES = 6 };
int copy_class(int length);

/* Learns from a match of `length` tokens after which the first `agreed` tokens followed again and, if `ended`, the next
 * one did not. Whether they were drafted makes no difference: the copy is known either way. */
void copy_learn(DraftChances *chances, DraftChances *usual, int length, int agreed, bool ended);

/* A match of so many tokens, as the policy sees it. */
DraftOffer copy_offer(const DraftChances *chances, int length);

#endif
