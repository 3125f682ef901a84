#define ADAFACTOR_VECTOR_BYTES 64
#define ADAFACTOR_TABLE kernels_v4
#include "table-inl.hpp"
