// The part of DLPack's C interface that is used here: https://dmlc.github.io/dlpack, 1.3.
// Its names, but in this namespace, so that nothing is built against another library's copy.
#pragma once

#include <cstdint>

namespace adafactor::dlpack {

constexpr std::uint32_t kMajorVersion = 1;  // structs of another one may lie otherwise

struct Version {
    std::uint32_t major, minor;
};

enum DeviceType : std::int32_t {
    kCPU = 1,
    kCUDAHost = 3
};  // the second is pinned, and this machine's

struct Device {
    std::int32_t device_type, device_id;
};

enum DataTypeCode : std::uint8_t { kUInt = 1, kFloat = 2, kBfloat = 4 };

struct DataType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

// The same in all versions.
struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t *shape, *strides;  // in elements; may be null where ndim is 0
    std::uint64_t byte_offset;
};

struct ExchangeHeader {
    Version version;
    ExchangeHeader* older;  // of an earlier major version, or null
};

struct ExchangeTable {
    ExchangeHeader header;
    void (*unused[3])();
    // Fills the struct, which borrows from the Python object. -1: a Python error is set. May be
    // null.
    int (*tensor_from_object)(void* object, Tensor* out);
    void (*unused_stream)();
};

constexpr const char* kCapsuleName = "dlpack_exchange_api";

}  // namespace adafactor::dlpack
