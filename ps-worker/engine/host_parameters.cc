#include "ps-worker/engine/host_parameters.h"

#include <algorithm>

#include "common/check.h"

namespace ps::worker {

HostParameters::HostParameters(Model& model, const LayoutView& layout,
                               const SparsifierOptions& options, bool local_steps)
    : model_(model), sparsifier_(layout, 0, model.selected_elements(), options) {
  if (!local_steps) return;
  const auto parameters = model_.parameters();
  pulled_.assign(parameters.begin(), parameters.end());
}

std::span<float> HostParameters::Values(const Block& block) {
  const std::span<float> all = pulled_.empty() ? model_.parameters() : std::span<float>(pulled_);
  return all.subspan(block.table_offset, block.elements);
}

Status HostParameters::Apply(const Block& block, const codec::BlockView& view, bool increments) {
  writer_.Write(view, increments, Values(block));
  return Ok();
}

Status HostParameters::Read(const Block& block, std::span<float> values) const {
  const auto held = const_cast<HostParameters*>(this)->Values(block);
  PS_CHECK(held.size() == values.size(), held.size(), values.size());
  std::copy(held.begin(), held.end(), values.begin());
  return Ok();
}

void HostParameters::UndoLocalSteps() {
  std::copy(pulled_.begin(), pulled_.end(), model_.parameters().begin());
}

Status HostParameters::Step(double ratio) { return sparsifier_.Step(model_.gradients(), ratio); }

Status HostParameters::AddLocalStep(float weight, float rate) {
  PS_CHECK(!pulled_.empty(), "the weights that were pulled are kept for local steps only");
  return sparsifier_.AddLocalStep(model_.gradients(), weight, rate, model_.parameters());
}

Status HostParameters::Select(double ratio) {
  sparsifier_.Select(ratio);
  return Ok();
}

Status HostParameters::Flush() {
  sparsifier_.Flush();
  return Ok();
}

Status HostParameters::ScaleResidual(float factor) {
  sparsifier_.ScaleResidual(factor);
  return Ok();
}

}  // namespace ps::worker
