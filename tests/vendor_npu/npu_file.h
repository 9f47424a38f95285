/* What npucc writes and libnpu_runtime.so reads: this header, then out*in weights and out biases, all float32. */
#ifndef NPU_FILE_H
#define NPU_FILE_H

#include <stdint.h>

#define NPU_MAGIC 0x3155504eu /* "NPU1" */
#define NPU_MAJOR 1
#define NPU_MINOR 4
#define NPU_RELU 1u /* negative results become 0 */
#define NPU_TRAP 2u /* a broken kernel: it crashes where the first number is negative */
#define NPU_TRAP_LOAD 4u /* a broken file: loading it crashes */

struct npu_header {
    uint32_t magic;
    uint16_t major, minor; /* of the compiler */
    uint32_t flags;
    uint32_t in, out;
    uint32_t devices; /* it was compiled for */
    uint32_t checksum; /* of what follows: the sum of its 32-bit words */
    char target[36];
};

static inline uint32_t npu_checksum(const float *numbers, uint64_t count) {
    const uint32_t *words = (const uint32_t *)(const void *)numbers;
    uint32_t sum = 0;
    for (uint64_t i = 0; i < count; i++)
        sum += words[i];
    return sum;
}

#endif
