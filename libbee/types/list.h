/* Every weight type that can be computed with: its name, its file's prefix and ggml's number of it. A new type is a
 * line here and a file beside this one; all else that knows the types is made of these lists. */
#ifndef BEE_TYPES_LIST_H
#define BEE_TYPES_LIST_H

#define FLOAT_TYPES(TYPE) \
    TYPE(F32, f32, 0)     \
    TYPE(F16, f16, 1)     \
    TYPE(BF16, bf16, 30)

/* Small integers, stored as such. */
#define INTEGER_TYPES(TYPE) \
    TYPE(Q8_0, q8_0, 8)     \
    TYPE(Q4_0, q4_0, 2)     \
    TYPE(Q4_1, q4_1, 3)     \
    TYPE(Q5_0, q5_0, 6)     \
    TYPE(Q5_1, q5_1, 7)     \
    TYPE(Q4_K, q4_k, 12)    \
    TYPE(Q5_K, q5_k, 13)    \
    TYPE(Q6_K, q6_k, 14)

#define QUANTISED_TYPES(TYPE) INTEGER_TYPES(TYPE)
#define WEIGHT_TYPES(TYPE) FLOAT_TYPES(TYPE) QUANTISED_TYPES(TYPE)

/* ggml's numbers. */
#define TYPE_NUMBER(NAME, name, number) TYPE_##NAME = number,
typedef enum TensorType {
    WEIGHT_TYPES(TYPE_NUMBER) TYPE_I64 = 27, /* only as an index (d2t) */
} TensorType;
#undef TYPE_NUMBER

#endif
