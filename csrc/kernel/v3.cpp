#define ADAFACTOR_VECTOR_BYTES 32
#define ADAFACTOR_TABLE kernels_v3
#include "table-inl.hpp"
