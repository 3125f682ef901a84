#include "bindings/torch_tensors.hpp"

#include <string>
#include <utility>

namespace adafactor {
namespace {

void set_dtype(TorchDtype dtype, TorchTensor& found) {
    found.dtype = dtype;
    switch (dtype) {
        case TorchDtype::float32:
            found.array.format = Format::float32;
            return;
        case TorchDtype::float64:
            found.array.format = Format::float64;
            return;
        case TorchDtype::float16:
            found.array.format = Format::float16;
            return;
        case TorchDtype::bfloat16:
            found.array.format = Format::bfloat16;
            return;
        default:
            found.array.format = Format::none;
            return;
    }
}

TorchDtype dtype_of(dlpack::DataType type) {
    if (type.lanes != 1) return TorchDtype::other;
    if (type.code == dlpack::kFloat && type.bits == 32) return TorchDtype::float32;
    if (type.code == dlpack::kFloat && type.bits == 64) return TorchDtype::float64;
    if (type.code == dlpack::kFloat && type.bits == 16) return TorchDtype::float16;
    if (type.code == dlpack::kBfloat && type.bits == 16) return TorchDtype::bfloat16;
    if (type.code == dlpack::kUInt && type.bits == 16) return TorchDtype::uint16;
    return TorchDtype::other;
}

TorchDtype dtype_named(const std::string& name) {
    if (name == "float32") return TorchDtype::float32;
    if (name == "float64") return TorchDtype::float64;
    if (name == "float16") return TorchDtype::float16;
    if (name == "bfloat16") return TorchDtype::bfloat16;
    if (name == "uint16") return TorchDtype::uint16;
    throw py::value_error("no dtype is called " + name);
}

}  // namespace

std::ptrdiff_t* AxesArena::take(int n) {
    const auto wanted = std::size_t(n);
    if (chunk_ < chunks_.size() && used_ + wanted > kChunk) ++chunk_, used_ = 0;
    if (chunk_ == chunks_.size()) {
        chunks_.push_back(std::make_unique<std::ptrdiff_t[]>(kChunk));
        used_ = 0;
    }
    std::ptrdiff_t* const place = chunks_[chunk_].get() + used_;
    used_ += wanted;
    return place;
}

std::size_t size_of(TorchDtype dtype) {
    switch (dtype) {
        case TorchDtype::float64:
            return 8;
        case TorchDtype::float32:
            return 4;
        case TorchDtype::float16:
        case TorchDtype::bfloat16:
        case TorchDtype::uint16:
            return 2;
        default:
            return 0;
    }
}

bool is_contiguous(const TorchTensor& tensor) {
    auto stride = std::ptrdiff_t(size_of(tensor.dtype));
    for (int d = tensor.array.ndim - 1; d >= 0; --d) {
        const std::ptrdiff_t n = tensor.array.shape[d];
        if (n == 0) return true;
        if (n > 1 && tensor.array.strides[d] != stride) return false;
        stride *= n;
    }
    return true;
}

TensorAttribute::TensorAttribute(const py::object& tensor_type, const py::object& parameter_type,
                                 const char* name)
    : name_(py::reinterpret_steal<py::object>(PyUnicode_InternFromString(name))),
      found_(tensor_type.attr(name)),
      is_method_(PyCallable_Check(found_.ptr()) != 0) {
    if (!found_.is(parameter_type.attr(name))) return;
    if (Py_IS_TYPE(found_.ptr(), &PyGetSetDescr_Type))
        attribute_ = reinterpret_cast<const PyGetSetDescrObject*>(found_.ptr())->d_getset;
    if (!Py_IS_TYPE(found_.ptr(), &PyMethodDescr_Type)) return;
    const PyMethodDef* const def =
        reinterpret_cast<const PyMethodDescrObject*>(found_.ptr())->d_method;
    if (def->ml_flags == METH_NOARGS) method_ = def->ml_meth;
}

py::object TensorAttribute::of(py::handle tensor) const {
    PyObject* const found = attribute_ != nullptr
                                ? attribute_->get(tensor.ptr(), attribute_->closure)
                            : method_ != nullptr ? method_(tensor.ptr(), nullptr)
                            : is_method_ ? PyObject_CallMethodNoArgs(tensor.ptr(), name_.ptr())
                                         : PyObject_GetAttr(tensor.ptr(), name_.ptr());
    if (found == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(found);
}

TorchReader::TorchReader(const py::object& tensor_type, const py::object& parameter_type,
                         const py::object& strided, const py::object& exchange,
                         const py::dict& dtypes)
    : held_types_(py::make_tuple(tensor_type, parameter_type)),
      strided_(strided),
      capsule_(exchange),
      tensor_(reinterpret_cast<PyTypeObject*>(tensor_type.ptr())),
      parameter_(reinterpret_cast<PyTypeObject*>(parameter_type.ptr())),
      grad_(tensor_type, parameter_type, "grad"),
      is_neg_(tensor_type, parameter_type, "is_neg") {
    for (const auto& [name, dtype] : dtypes)
        dtypes_.emplace_back(py::reinterpret_borrow<py::object>(dtype),
                             dtype_named(name.cast<std::string>()));
    if (exchange.is_none()) return;
    const void* const pointer = PyCapsule_GetPointer(exchange.ptr(), dlpack::kCapsuleName);
    if (pointer == nullptr) throw py::error_already_set();
    const auto* header = static_cast<const dlpack::ExchangeHeader*>(pointer);
    while (header != nullptr && header->version.major != dlpack::kMajorVersion)
        header = header->older;
    if (header == nullptr)
        throw std::runtime_error(
            "torch exchanges tensors by another major version of DLPack than 1: a newer "
            "adafactor_native is needed");
    const auto* const table = reinterpret_cast<const dlpack::ExchangeTable*>(header);
    if (table->tensor_from_object != nullptr) table_ = table;
}

bool TorchReader::read(py::handle tensor, AxesArena& arena, TorchTensor& found) const {
    return table_ != nullptr ? read_by_exchange(tensor, arena, found)
                             : read_by_methods(tensor, arena, found);
}

bool TorchReader::read_by_exchange(py::handle tensor, AxesArena& arena, TorchTensor& found) const {
    dlpack::Tensor seen;
    if (table_->tensor_from_object(tensor.ptr(), &seen) != 0) {
        PyErr_Clear();
        return false;
    }
    if (seen.device.device_type != dlpack::kCPU && seen.device.device_type != dlpack::kCUDAHost)
        return false;
    set_dtype(dtype_of(seen.dtype), found);
    std::ptrdiff_t* const axes = arena.take(2 * seen.ndim);
    const std::ptrdiff_t bytes = seen.dtype.bits / 8 * seen.dtype.lanes;
    for (int d = 0; d < seen.ndim; ++d) {
        axes[d] = std::ptrdiff_t(seen.shape[d]);
        axes[seen.ndim + d] = std::ptrdiff_t(seen.strides[d]) * bytes;
    }
    found.array.data = static_cast<char*>(seen.data) + seen.byte_offset;
    found.array.ndim = seen.ndim;
    found.array.shape = axes;
    found.array.strides = axes + seen.ndim;
    return true;
}

bool TorchReader::read_by_methods(py::handle tensor, AxesArena& arena, TorchTensor& found) const {
    try {
        if (tensor.attr("layout").ptr() != strided_.ptr() ||
            tensor.attr("device").attr("type").cast<std::string>() != "cpu")
            return false;
        const py::object dtype = tensor.attr("dtype");
        set_dtype(TorchDtype::other, found);
        for (const auto& [known, meaning] : dtypes_)
            if (dtype.is(known)) set_dtype(meaning, found);
        const py::tuple shape = tensor.attr("shape"), strides = tensor.attr("stride")();
        const int ndim = int(shape.size());
        const auto bytes = std::ptrdiff_t(size_of(found.dtype));
        std::ptrdiff_t* const axes = arena.take(2 * ndim);
        for (int d = 0; d < ndim; ++d) {
            axes[d] = shape[std::size_t(d)].cast<std::ptrdiff_t>();
            axes[ndim + d] = strides[std::size_t(d)].cast<std::ptrdiff_t>() * bytes;
        }
        found.array.data =
            reinterpret_cast<char*>(tensor.attr("data_ptr")().cast<std::uintptr_t>());
        found.array.ndim = ndim;
        found.array.shape = axes;
        found.array.strides = axes + ndim;
        return true;
    } catch (py::error_already_set&) {  // a tensor that is only described has no memory
        return false;
    }
}

}  // namespace adafactor
