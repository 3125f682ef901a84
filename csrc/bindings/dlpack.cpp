#include "bindings/dlpack.hpp"

#include <cstdint>
#include <vector>

#include "bindings/dlpack_structs.hpp"

namespace adafactor {
namespace {

// What a capsule called "dltensor" holds.
struct ManagedTensor {
    dlpack::Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
};

bool is_on_cpu(py::handle object) {
    const auto device = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    return device.first == dlpack::kCPU || device.first == dlpack::kCUDAHost;
}

// Of the bits, sharing the tensor's memory; it owns the tensor.
py::array bits_of(const py::capsule& capsule, ManagedTensor* managed) {
    const dlpack::Tensor& tensor = managed->tensor;
    std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.ndim), strides(shape.size());
    py::ssize_t step = sizeof(std::uint16_t);
    for (std::size_t d = shape.size(); d-- > 0;) {
        strides[d] = tensor.strides == nullptr
                         ? step
                         : tensor.strides[d] * py::ssize_t(sizeof(std::uint16_t));
        step *= shape[d];
    }
    const py::capsule owner(managed, [](void* given) {
        auto* const owned = static_cast<ManagedTensor*>(given);
        if (owned->deleter != nullptr) owned->deleter(owned);
    });
    // From here on it is the owner that frees the tensor.
    if (PyCapsule_SetName(capsule.ptr(), "used_dltensor") != 0) throw py::error_already_set();
    return py::array(py::dtype::of<std::uint16_t>(), std::move(shape), std::move(strides),
                     static_cast<char*>(tensor.data) + tensor.byte_offset, owner);
}

py::object with_values(const py::array& bits) {
    try {
        return bits.attr("view")(py::module_::import("ml_dtypes").attr("bfloat16"));
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_ImportError)) throw;
    }
    const py::object wide = bits.attr("astype")("uint32");
    // of their own type: with Python's 16 NumPy 1 computes those without axes as int64
    wide.attr("__ilshift__")(py::module_::import("numpy").attr("uint32")(16));
    return wide.attr("view")("float32");
}

}  // namespace

py::object bfloat16_of_dlpack(py::handle object) {
    if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__") ||
        !is_on_cpu(object))
        return {};
    const py::object given = object.attr("__dlpack__")();
    if (!PyCapsule_IsValid(given.ptr(), "dltensor")) return {};
    const auto capsule = py::reinterpret_borrow<py::capsule>(given);
    auto* const managed =
        static_cast<ManagedTensor*>(PyCapsule_GetPointer(given.ptr(), "dltensor"));
    const dlpack::Tensor& tensor = managed->tensor;
    if (tensor.dtype.code != dlpack::kBfloat || tensor.dtype.bits != 16 || tensor.dtype.lanes != 1)
        return {};
    return with_values(bits_of(capsule, managed));
}

}  // namespace adafactor
