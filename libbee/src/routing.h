/* Which experts a row goes to, and how many rows and places that makes. */
#ifndef BEE_ROUTING_H
#define BEE_ROUTING_H

#include <stdbool.h>
#include <stddef.h>

/* What the router's logits become. */
typedef enum RouteProbability { ROUTE_SOFTMAX, ROUTE_SIGMOID, ROUTE_SOFTMAX_OF_CHOSEN } RouteProbability;

/* Which experts a row goes to: the n_used of the largest (probability + bias), best first, of equal ones the lower. */
typedef struct Routing {
    RouteProbability probability;
    int n_experts, n_used;
    const float *bias; /* it chooses and does not weigh; NULL: none */
    bool normed;       /* the weights are divided by their sum */
    float scale;       /* and multiplied by this */
} Routing;

enum { MAX_EXPERTS = 1024, MAX_USED_EXPERTS = 32 };

enum { EXPERT_ALIGNMENT = 16 };

/* Rows of gathered operands, for a pass of so many rows. */
static inline int expert_rows(int n_rows, int n_experts, int n_used) {
    const int all = n_rows * n_used, hit = all < n_experts ? all : n_experts;
    return all + hit * (EXPERT_ALIGNMENT - 1) + EXPERT_ALIGNMENT;
}

/* EXPERT_ALIGNMENT rows of one expert are a tile: so many at most. */
static inline int expert_tiles(int n_rows, int n_experts, int n_used) {
    const int all = n_rows * n_used, hit = all < n_experts ? all : n_experts;
    return hit + (all - hit) / EXPERT_ALIGNMENT;
}

/* Their number, four numbers for each, and the place of each row's each expert. */
static inline size_t expert_places(int n_rows, int n_experts, int n_used) {
    return 4 + 4 * (size_t)expert_tiles(n_rows, n_experts, n_used) + (size_t)n_rows * (size_t)n_used;
}

#endif
