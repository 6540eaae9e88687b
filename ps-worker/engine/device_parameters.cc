#include "ps-worker/engine/device_parameters.h"

#include <utility>

#include "common/check.h"
#include "ps-worker/cuda/runtime.h"

namespace ps::worker {

Result<std::unique_ptr<DenseParameters>> DeviceParameters::Create(
    Model& model, const LayoutView& layout, const SparsifierOptions& options) {
  auto sparsifier =
      PS_TRY(cuda::DeviceSparsifier::Create(layout, 0, model.selected_elements(), options));
  return std::unique_ptr<DenseParameters>(new DeviceParameters(model, std::move(sparsifier)));
}

DeviceParameters::DeviceParameters(Model& model, std::unique_ptr<cuda::DeviceSparsifier> sparsifier)
    : model_(model),
      pull_(model.parameters().data(), kStream),
      sparsifier_(std::move(sparsifier)) {}

Status DeviceParameters::Read(const Block& block, std::span<float> values) const {
  PS_CHECK(values.size() == block.elements, values.size(), block.elements);
  // After all that is enqueued: on the default stream.
  return cuda::Checked(cudaMemcpy(values.data(), model_.parameters().data() + block.table_offset,
                                  values.size_bytes(), cudaMemcpyDeviceToHost),
                       "copying parameters from the device");
}

Status DeviceParameters::Step(double ratio) {
  const auto gradient = model_.gradients();
  PS_TRY(sparsifier_->Step({gradient.data()}, ratio, kStream));
  return sparsifier_->Collect();
}

Status DeviceParameters::AddLocalStep(float, float) {
  return Error{ErrorCode::kInternal, "local steps are not computed on a GPU"};
}

Status DeviceParameters::Select(double) {
  return Error{ErrorCode::kInternal, "local steps are not computed on a GPU"};
}

}  // namespace ps::worker
