#include "ps-worker/engine/file_values.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <span>

#include "common/error_id.h"
#include "common/job/load_mapping.h"
#include "ps-worker/engine/safetensors.h"

namespace ps::worker {
namespace {

struct FreeState {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

// Where a tensor of the job lies.
std::span<float> FindTensor(Workload& workload, const std::string& name) {
  const control::LayoutT& layout = workload.layout();
  for (std::uint32_t table = 0; table < layout.tables.size(); ++table) {
    for (const auto& tensor : layout.tables[table]->tensors) {
      if (tensor->name == name) {
        return workload.table(table).subspan(tensor->offset, tensor->elements);
      }
    }
  }
  return {};
}

}  // namespace

Result<FileValues> LoadFileValues(const JobSpec& spec, Workload& workload) {
  FileValues result;
  if (spec.checkpoint.load.empty()) return result;
  const ModelParts job = PS_TRY(ModelParts::Of(workload.layout()));
  const std::unique_ptr<XXH3_state_t, FreeState> state(XXH3_createState());
  XXH3_64bits_reset(state.get());
  LoadClaims claims;
  for (std::size_t number = 0; number < spec.checkpoint.load.size(); ++number) {
    const LoadSourceSpec& source = spec.checkpoint.load[number];
    if (source.file.empty()) continue;
    const std::string name = LoadSourceName(spec, number);
    const auto file = SafetensorsFile::Open(source.file);
    if (!file.ok()) return Annotate(file.error(), name);
    ModelParts parts;
    for (const SafetensorsEntry& entry : file->entries()) {
      parts.tensors.push_back({entry.name, entry.shape, 0, entry.counter()});
    }
    const LoadMapping mapping = PS_TRY(MapLoadSource(spec, number, parts, job));
    PS_TRY(claims.Add(mapping, job, name));
    for (const LoadPair& pair : mapping.tensors) {
      const SafetensorsEntry& entry = file->entries()[pair.from];
      if (!entry.loadable()) {
        return Error{ErrorId::kInitialValues, name + "tensor `" + entry.name + "` is of the type " +
                                                  entry.type +
                                                  "; F32, F16, BF16 and I64 can be loaded"};
      }
      const std::string& target = job.tensors[pair.to].name;
      const std::span<float> to = FindTensor(workload, target);
      const TensorCopy copy(entry.shape, job.tensors[pair.to].shape);
      XXH3_64bits_update(state.get(), target.data(), target.size() + 1);
      const Status read =
          file->Read(entry, [&](std::uint64_t first, std::span<const float> values) {
            XXH3_64bits_update(state.get(), values.data(), values.size_bytes());
            copy.ForEachRun(first, first + values.size(),
                            [&](std::uint64_t from, std::uint64_t at, std::uint64_t count) {
                              std::copy_n(values.data() + (from - first), count, to.data() + at);
                            });
          });
      if (!read.ok()) return Annotate(read.error(), name);
      result.tensors.push_back(target);
    }
  }
  if (!result.tensors.empty()) result.fingerprint = XXH3_64bits_digest(state.get());
  return result;
}

}  // namespace ps::worker
