// Checks the final checkpoint of a ledger job: was every push applied exactly once?
//
//   ledger_check ROUND_DIRECTORY
//
// A task of the ledger model adds 1 at the element of its worker slot, in every block, with each
// push. So at the end every block holds, at element w, the number of pushes of slot w. Summed over
// the slots that must be the batches that the manifest says were trained, counted repeats included,
// and it must be the same in all blocks of all shards. Prints one JSON line; exit 1 and the shard,
// block and numbers on any difference.
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/reader.h"
#include "checkpoint/verify.h"
#include "common/job/job_spec.h"

namespace ps {
namespace {

struct Finding {
  std::vector<std::string> texts;
  double lost = 0;
  double doubled = 0;

  void Differ(const std::string& where, double expected, double found) {
    texts.push_back(where + ": expected " + std::to_string(static_cast<long long>(expected)) +
                    ", found " + std::to_string(static_cast<long long>(found)));
    (found < expected ? lost : doubled) += std::fabs(found - expected);
  }
};

Result<nlohmann::json> Check(const std::filesystem::path& directory, Finding& finding) {
  const std::string text = PS_TRY(checkpoint::FindManifest(directory));
  const checkpoint::Manifest manifest = PS_TRY(checkpoint::FromJson(text));
  const JobSpec spec = PS_TRY(ParseJobJson(manifest.spec_json));
  const auto batch = static_cast<double>(spec.training.batch_size);
  std::map<std::string, checkpoint::Reader> readers;
  double trained = static_cast<double>(manifest.data.total_positions + manifest.data.repeated);
  for (const auto& range : manifest.data.remaining) {
    trained -= static_cast<double>(range.end - range.begin);
  }
  const double expected = trained / batch;
  double pushes = -1;
  for (const auto& entry : manifest.shards) {
    if (!readers.contains(entry.server)) {
      readers.emplace(entry.server, PS_TRY(checkpoint::Reader::Open(directory / entry.server)));
    }
    const checkpoint::ShardImage image =
        PS_TRY(readers.at(entry.server).ReadShard(entry.shard, entry.digest));
    const std::string shard = "shard " + std::to_string(entry.shard.value());
    std::size_t offset = 0;
    for (std::size_t block = 0; block < image.block_elements.size(); ++block) {
      double sum = 0;
      for (std::uint32_t i = 0; i < image.block_elements[block]; ++i) {
        const float value = image.values[offset + i];
        if (i >= static_cast<std::uint32_t>(spec.training.workers) && value != 0.0f) {
          finding.Differ(
              shard + " block " + std::to_string(block) + " element " + std::to_string(i), 0,
              value);
        }
        sum += value;
      }
      offset += image.block_elements[block];
      if (sum != expected) {
        finding.Differ(shard + " block " + std::to_string(block), expected, sum);
      }
      pushes = sum;
    }
  }
  return nlohmann::json{
      {"shards", manifest.shards.size()},   {"pushes", pushes},
      {"samples", pushes * batch},          {"positions", manifest.data.total_positions},
      {"repeated", manifest.data.repeated}, {"lost", finding.lost},
      {"doubled", finding.doubled}};
}

}  // namespace
}  // namespace ps

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: ledger_check ROUND_DIRECTORY\n");
    return 2;
  }
  ps::Finding finding;
  const auto result = ps::Check(argv[1], finding);
  if (!result.ok()) {
    std::fprintf(stderr, "ledger_check: %s\n", result.error().message.c_str());
    return 1;
  }
  for (const std::string& text : finding.texts) std::fprintf(stderr, "%s\n", text.c_str());
  std::printf("%s\n", result->dump().c_str());
  return finding.texts.empty() ? 0 : 1;
}
