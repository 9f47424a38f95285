/* libpim_simulator.so: matrix × vector as processing in memory does it, on the host's processor. It is a simulation.

   The API is our own, in the manner of UPMEM's: ranks of DPUs are allocated with a profile, each DPU gets its share of
   the matrix's rows into its own memory (64 MiB, as an UPMEM DPU has), the vector is broadcast, all are launched, and the
   host gathers the results. pim_load reads `weight` of a .safetensors file. NULL is failure, and pim_error says why. */
#include "safetensors.h"

#define DPUS_PER_RANK 64u
#define MRAM_BYTES (64ull << 20)

struct dpu {
    uint32_t first, rows; /* of the matrix */
    float *mram; /* rows * columns numbers */
};

struct pim_set {
    uint32_t dpus;
    char profile[60];
};

struct pim_matrix {
    struct pim_set *set;
    uint32_t rows, columns;
    struct dpu *dpus;
};

static char error_words[200];

const char *pim_error(void) {
    return error_words;
}

struct pim_set *pim_alloc(uint32_t ranks, const char *profile) {
    struct pim_set *set;
    if (strcmp(profile, "backend=simulator") != 0) {
        snprintf(error_words, sizeof error_words, "profile %s: this library has only backend=simulator", profile);
        return NULL;
    }
    set = calloc(1, sizeof *set);
    set->dpus = ranks * DPUS_PER_RANK;
    snprintf(set->profile, sizeof set->profile, "%s", profile);
    return set;
}

struct pim_matrix *pim_load(struct pim_set *set, const char *path) {
    struct safetensors file;
    uint32_t rows, columns;
    float *weight;
    struct pim_matrix *matrix;
    if (safetensors_open(path, &file) != 0 || (weight = safetensors_find(&file, "weight", &rows, &columns)) == NULL) {
        snprintf(error_words, sizeof error_words, "%s has no float32 tensor weight", path);
        return NULL;
    }
    matrix = calloc(1, sizeof *matrix);
    matrix->set = set;
    matrix->rows = rows;
    matrix->columns = columns;
    matrix->dpus = calloc(set->dpus, sizeof *matrix->dpus);
    for (uint32_t d = 0; d < set->dpus; d++) {
        struct dpu *dpu = &matrix->dpus[d];
        dpu->first = (uint32_t)((uint64_t)rows * d / set->dpus);
        dpu->rows = (uint32_t)((uint64_t)rows * (d + 1) / set->dpus) - dpu->first;
        if (4ull * dpu->rows * columns > MRAM_BYTES) {
            snprintf(error_words, sizeof error_words, "%u rows of %u numbers do not fit the %llu bytes of a DPU",
                     dpu->rows, columns, MRAM_BYTES);
            return NULL;
        }
        dpu->mram = malloc(4ull * dpu->rows * columns + 1);
        memcpy(dpu->mram, weight + (uint64_t)dpu->first * columns, 4ull * dpu->rows * columns);
    }
    free(file.header);
    free(file.data);
    return matrix;
}

/* What runs on each DPU. */
static void kernel(const struct dpu *dpu, uint32_t columns, const float *x, float *y) {
    for (uint32_t row = 0; row < dpu->rows; row++) {
        float sum = 0;
        for (uint32_t column = 0; column < columns; column++)
            sum += dpu->mram[(uint64_t)row * columns + column] * x[column];
        y[dpu->first + row] = sum;
    }
}

void pim_gemv(struct pim_matrix *matrix, const float *x, float *y, uint32_t vectors) {
    for (uint32_t v = 0; v < vectors; v++)
        for (uint32_t d = 0; d < matrix->set->dpus; d++)
            kernel(&matrix->dpus[d], matrix->columns, x + (uint64_t)v * matrix->columns,
                   y + (uint64_t)v * matrix->rows);
}

void pim_free(struct pim_matrix *matrix) {
    for (uint32_t d = 0; d < matrix->set->dpus; d++)
        free(matrix->dpus[d].mram);
    free(matrix->dpus);
    free(matrix);
}

void pim_release(struct pim_set *set) {
    free(set);
}
