/* Every weight type that can be computed with: its name, its file's prefix and ggml's number of it. A new type is a
 * line here and a file beside this one; all else that knows the types is made of these lists. */
#ifndef BEE_TYPES_LIST_H
#define BEE_TYPES_LIST_H

#define FLOAT_TYPES(TYPE) \
    TYPE(F32, f32, 0)     \
    TYPE(F16, f16, 1)     \
    TYPE(BF16, bf16, 30)

/* Small integers, stored as such or as digits. */
#define INTEGER_TYPES(TYPE) \
    TYPE(Q8_0, q8_0, 8)     \
    TYPE(Q4_0, q4_0, 2)     \
    TYPE(Q4_1, q4_1, 3)     \
    TYPE(Q5_0, q5_0, 6)     \
    TYPE(Q5_1, q5_1, 7)     \
    TYPE(Q4_K, q4_k, 12)    \
    TYPE(Q5_K, q5_k, 13)    \
    TYPE(Q6_K, q6_k, 14)    \
    TYPE(Q3_K, q3_k, 11)    \
    TYPE(Q2_K, q2_k, 10)    \
    TYPE(Q2_0, q2_0, 42)    \
    TYPE(Q1_0, q1_0, 41)    \
    TYPE(TQ2_0, tq2_0, 35)  \
    TYPE(TQ1_0, tq1_0, 34)

/* Nibbles that stand for the numbers of a table. */
#define TABLE_TYPES(TYPE)    \
    TYPE(IQ4_XS, iq4_xs, 23) \
    TYPE(IQ4_NL, iq4_nl, 20) \
    TYPE(MXFP4, mxfp4, 39)   \
    TYPE(NVFP4, nvfp4, 40)

/* Indices that stand for several numbers at once. */
#define GRID_TYPES(TYPE)       \
    TYPE(IQ3_S, iq3_s, 21)     \
    TYPE(IQ3_XXS, iq3_xxs, 18) \
    TYPE(IQ2_S, iq2_s, 22)     \
    TYPE(IQ2_XS, iq2_xs, 17)   \
    TYPE(IQ2_XXS, iq2_xxs, 16) \
    TYPE(IQ1_M, iq1_m, 29)     \
    TYPE(IQ1_S, iq1_s, 19)

#define QUANTISED_TYPES(TYPE) INTEGER_TYPES(TYPE) TABLE_TYPES(TYPE) GRID_TYPES(TYPE)
#define WEIGHT_TYPES(TYPE) FLOAT_TYPES(TYPE) QUANTISED_TYPES(TYPE)

/* ggml's numbers. */
#define TYPE_NUMBER(NAME, name, number) TYPE_##NAME = number,
typedef enum TensorType {
    WEIGHT_TYPES(TYPE_NUMBER) TYPE_I64 = 27, /* only as an index (d2t) */
} TensorType;
#undef TYPE_NUMBER

#endif
