#define ADAFACTOR_VECTOR_BYTES 16
#define ADAFACTOR_TABLE kernels_baseline
#include "table-inl.hpp"
