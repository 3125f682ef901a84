#include "engine/sharded_grid.hpp"

namespace adafactor {

std::unique_ptr<ShardedTensor> make_sharded_grid(const Tensor& tensor, bool given,
                                                 TensorReport& report,
                                                 const ShardedPlaces& places) {
    return std::make_unique<ShardedGrid>(tensor, given, report, places);
}

}  // namespace adafactor
