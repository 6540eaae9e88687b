#include "ps-server/shell/source_loader.h"

#include <algorithm>
#include <utility>

#include "checkpoint/manifest.h"

namespace ps::server {
namespace {

Error Bad(const std::string& what) { return Error{ErrorCode::kInvalid, what}; }

// A manifest's own numbers need not fit each other.
Result<ModelParts> PartsOf(const checkpoint::Manifest& manifest) {
  ModelParts parts;
  std::uint64_t begin = 0;
  for (const checkpoint::ManifestTable& table : manifest.tables) {
    for (const checkpoint::ManifestTensor& tensor : table.tensors) {
      parts.tensors.push_back(
          PS_TRY(ModelParts::Tensor::Of(tensor.name, tensor.shape, tensor.elements,
                                        begin + tensor.offset, table.rule == TableRule::Maximum)));
    }
    if (table.elements > UINT64_MAX / 2 - begin) return Bad("its tables are too large");
    begin += table.elements;
  }
  for (const checkpoint::ManifestRowTable& table : manifest.row_tables) {
    parts.tables.push_back({table.name, table.width});
  }
  return parts;
}

std::uint64_t ElementsOf(const checkpoint::Manifest& manifest) {
  std::uint64_t elements = 0;
  for (const checkpoint::ManifestTable& table : manifest.tables) elements += table.elements;
  return elements;
}

}  // namespace

Result<LoadOrder> LoadOrder::Of(JobId job, const JobSpec& spec, const control::LayoutT& layout) {
  LoadOrder order;
  order.job = job;
  order.parts = PS_TRY(ModelParts::Of(layout));
  for (const LoadSourceSpec& source : spec.checkpoint.load) {
    if (source.from.empty()) continue;
    const CheckpointOrigin origin = ParseOrigin(source.from);
    if (!origin.round.has_value() ||
        origin.job.find_first_not_of("0123456789") != std::string::npos) {
      return Bad("checkpoint.load: `" + source.from +
                 "` does not name a job and a round by number");
    }
    order.sources.push_back(source);
  }
  return order;
}

Status SourceLoader::Open(const LoadOrder& order) {
  if (job_ == order.job && sources_.size() == order.sources.size()) return Ok();
  sources_.clear();
  job_ = order.job;
  for (const LoadSourceSpec& spec : order.sources) {
    const CheckpointOrigin origin = ParseOrigin(spec.from);
    Source source;
    source.round_name = "job-" + origin.job + "/ckpt-" + std::to_string(*origin.round);
    source.source.name =
        "checkpoint " + std::to_string(*origin.round) + " of job " + origin.job + ": ";
    source.reader = make_reader_();
    source.reader->SetSources(places_);
    const auto open = [&]() -> Status {
      const checkpoint::Manifest* const manifest =
          PS_TRY(source.reader->ReadManifest(source.round_name));
      source.source.parts = PS_TRY(PartsOf(*manifest));
      source.source.mapping = PS_TRY(MapLoad(spec, source.source.parts, order.parts));
      // Where a shard begins follows from the blocks of all before it.
      const std::uint64_t elements = ElementsOf(*manifest);
      const std::size_t shards = manifest->shards.size();
      source.source.shard_begins.assign(1, 0);
      for (std::uint32_t shard = 0; shard < shards; ++shard) {
        const checkpoint::ShardMeta meta =
            PS_TRY(source.reader->ReadMeta(source.round_name, ShardId(shard)));
        std::uint64_t end = source.source.shard_begins.back();
        for (const std::uint32_t count : meta.image.block_elements) end += count;
        source.source.shard_begins.push_back(end);
      }
      if (source.source.shard_begins.back() != elements) {
        return Bad("its shards have " + std::to_string(source.source.shard_begins.back()) +
                   " elements, its manifest says " + std::to_string(elements));
      }
      return Ok();
    };
    const Status opened = open();
    if (!opened.ok()) return Annotate(opened.error(), source.source.name);
    sources_.push_back(std::move(source));
  }
  return Ok();
}

Status SourceLoader::LoadAll(const LoadOrder& order, Shard& shard) {
  PS_TRY(Open(order));
  PartialLoad load(shard, order.parts);
  for (const Source& source : sources_) {
    const auto read = [&]() -> Status {
      for (const ShardId from : load.BeginSource(source.source)) {
        load.BeginShard(from);
        PS_TRY(source.reader->Read(source.round_name, from, load));
      }
      return load.EndSource();
    };
    const Status done = read();
    if (!done.ok()) return Annotate(done.error(), source.source.name);
  }
  load.Finish();
  return Ok();
}

void SourceLoader::SetSources(const std::vector<PartSource>& sources) {
  if (sources == places_) return;
  places_ = sources;
  sources_.clear();
}

Status SourceLoader::Load(const LoadOrder& order, Shard& shard) {
  Status loaded = LoadAll(order, shard);
  again_ = !loaded.ok() && std::any_of(sources_.begin(), sources_.end(),
                                       [](const Source& source) { return source.reader->again(); });
  // Whoever tries again should open the files again.
  if (!loaded.ok() && !again_) sources_.clear();
  return loaded;
}

}  // namespace ps::server
