// Checks a checkpoint of a ledger job: was every push before the cut applied exactly once, and none
// after it?
//
//   ledger_check [--each-worker] ROUND_DIRECTORY
//
// A task of the ledger model adds 1 at the element of its worker slot, in every block, with each
// push. So every block holds, at element w, the number of pushes of slot w. Summed over
// the slots that must be the batches that the manifest says were trained, counted repeats included,
// and it must be the same in all blocks of all shards. Every shard must have had exactly the pushes
// of the live workers up to the clocks of the manifest's cuts. In tables of rows each trained
// record adds 1 to each float of one row: a column of floats must sum up to the records, and where
// none was repeated and none remains each row must have exactly its own. With --each-worker element
// w of every block must also be exactly the clocks that slot w's incarnations have pushed on that
// shard, which holds where every push was of one whole batch and none was refused
// (max_version_gap); a drain pushes once more, without a batch, so that in a final checkpoint it
// may be one less for each incarnation. Prints one JSON line; exit 1 and the shard, block or row
// and numbers on any difference.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstring>
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

// The rows of all shards, by table and key.
using AllRows = std::map<std::uint32_t, std::map<std::uint64_t, std::vector<float>>>;

void AddRows(const checkpoint::ShardImage& image, AllRows& all, Finding& finding) {
  for (const checkpoint::RowTableImage& table : image.rows) {
    for (std::size_t row = 0; row < table.rows(); ++row) {
      const std::byte* const record = table.records.data() + row * table.record_bytes();
      std::uint64_t key = 0;
      std::memcpy(&key, record, sizeof(key));
      std::vector<float> values(table.width);
      std::memcpy(values.data(), record + checkpoint::kRowHeaderBytes,
                  values.size() * sizeof(float));
      if (!all[table.table].emplace(key, std::move(values)).second) {
        finding.Differ(
            "table " + std::to_string(table.table) + " key " + std::to_string(key) + " on shards",
            1, 2);
      }
    }
  }
}

void CheckRows(const JobSpec& spec, const checkpoint::Manifest& manifest, double trained,
               const AllRows& all, Finding& finding) {
  const auto keys = static_cast<std::uint64_t>(spec.model.rows);
  const auto records = static_cast<std::uint64_t>(spec.data.train.records);
  const double epochs =
      static_cast<double>(manifest.data.total_positions) / static_cast<double>(records);
  const bool each = manifest.data.repeated == 0 && manifest.data.remaining.empty() &&
                    epochs == std::floor(epochs);
  for (std::uint32_t number = 0; number < spec.embedding_tables.size(); ++number) {
    const std::string table = "table " + std::to_string(number);
    const auto found = all.find(number);
    std::vector<double> sums(static_cast<std::size_t>(spec.embedding_tables[number].width));
    const std::map<std::uint64_t, std::vector<float>> none;
    const auto& rows = found == all.end() ? none : found->second;
    for (const auto& [key, values] : rows) {
      for (std::size_t i = 0; i < values.size(); ++i) sums[i] += values[i];
      if (key >= keys) finding.Differ(table + " keys from " + std::to_string(keys) + " on", 0, 1);
      if (!each) continue;
      const double expected =
          (key < records ? static_cast<double>((records - key - 1) / keys + 1) : 0.0) * epochs;
      for (const float value : values) {
        if (value != expected)
          finding.Differ(table + " key " + std::to_string(key), expected, value);
      }
    }
    for (const double sum : sums) {
      if (sum != trained) finding.Differ(table + " in sum", trained, sum);
    }
  }
}

// The cut of the manifest is that of the shard. A worker that has not pushed yet is known to no
// shard: `without` gets, by incarnation, the shards that know nothing of it.
void CheckMarks(const checkpoint::Manifest& manifest, const checkpoint::ShardImage& image,
                std::map<Incarnation, std::vector<std::string>>& without, Finding& finding) {
  for (const auto& cut : manifest.cuts) {
    const std::string who = "shard " + std::to_string(image.shard.value()) + " worker " +
                            std::to_string(cut.worker.value()) + " incarnation " +
                            std::to_string(cut.incarnation.value());
    const auto mark = std::find_if(image.marks.begin(), image.marks.end(), [&](const auto& one) {
      return one.worker == cut.worker && one.incarnation == cut.incarnation;
    });
    if (mark == image.marks.end()) {
      without[cut.incarnation].push_back(who);
    } else if (mark->watermark != cut.clock) {
      finding.Differ(who + " clock", static_cast<double>(cut.clock.value()),
                     static_cast<double>(mark->watermark.value()));
    }
  }
}

// Clocks that the incarnations of each worker slot have pushed, and how many incarnations.
struct Pushed {
  double clocks = 0;
  double incarnations = 0;
};

std::vector<Pushed> PushedBy(const checkpoint::ShardImage& image, std::size_t workers) {
  std::vector<Pushed> pushed(workers);
  for (const checkpoint::WorkerMark& mark : image.marks) {
    if (mark.worker.value() >= workers) continue;
    pushed[mark.worker.value()].clocks +=
        static_cast<double>(mark.watermark.value() - mark.first_clock.value());
    pushed[mark.worker.value()].incarnations += 1;
  }
  return pushed;
}

Result<nlohmann::json> Check(const std::filesystem::path& directory, bool each_worker,
                             Finding& finding) {
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
  std::size_t incremental = 0;
  AllRows rows;
  std::map<Incarnation, std::vector<std::string>> without;
  for (const auto& entry : manifest.shards) {
    if (!readers.contains(entry.server)) {
      readers.emplace(entry.server, PS_TRY(checkpoint::Reader::Open(directory / entry.server)));
    }
    const checkpoint::ShardImage image =
        PS_TRY(readers.at(entry.server).ReadShard(entry.shard, entry.digest));
    AddRows(image, rows, finding);
    CheckMarks(manifest, image, without, finding);
    // An operator may have given it more than the file says.
    auto workers = static_cast<std::size_t>(spec.training.workers);
    for (const checkpoint::WorkerMark& mark : image.marks) {
      workers = std::max<std::size_t>(workers, mark.worker.value() + std::size_t{1});
    }
    const std::vector<Pushed> pushed = PushedBy(image, workers);
    incremental += entry.bases.empty() ? 0 : 1;
    const std::string shard = "shard " + std::to_string(entry.shard.value());
    std::size_t offset = 0;
    for (std::size_t block = 0; block < image.block_elements.size(); ++block) {
      double sum = 0;
      for (std::uint32_t i = 0; i < image.block_elements[block]; ++i) {
        const float value = image.values[offset + i];
        const double most = i < workers ? pushed[i].clocks : 0;
        const double least =
            manifest.final_round && i < workers ? most - pushed[i].incarnations : most;
        if ((i >= workers && value != 0.0f) ||
            (i < workers && each_worker && (value < least || value > most))) {
          finding.Differ(
              shard + " block " + std::to_string(block) + " element " + std::to_string(i), most,
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
  for (const auto& [incarnation, shards] : without) {
    if (shards.size() == manifest.shards.size()) continue;
    for (const std::string& shard : shards) finding.texts.push_back(shard + ": has no push of it");
  }
  CheckRows(spec, manifest, trained, rows, finding);
  std::size_t row_count = 0;
  for (const auto& [table, of_table] : rows) row_count += of_table.size();
  return nlohmann::json{
      {"shards", manifest.shards.size()},   {"pushes", pushes},
      {"samples", pushes * batch},          {"positions", manifest.data.total_positions},
      {"repeated", manifest.data.repeated}, {"lost", finding.lost},
      {"doubled", finding.doubled},         {"rows", row_count},
      {"round", manifest.round.value()},    {"final", manifest.final_round},
      {"incremental", incremental},         {"workers", manifest.cuts.size()}};
}

}  // namespace
}  // namespace ps

int main(int argc, char** argv) {
  const bool each_worker = argc > 1 && std::strcmp(argv[1], "--each-worker") == 0;
  if (argc != (each_worker ? 3 : 2)) {
    std::fprintf(stderr, "usage: ledger_check [--each-worker] ROUND_DIRECTORY\n");
    return 2;
  }
  ps::Finding finding;
  const auto result = ps::Check(argv[argc - 1], each_worker, finding);
  if (!result.ok()) {
    std::fprintf(stderr, "ledger_check: %s\n", result.error().message.c_str());
    return 1;
  }
  for (const std::string& text : finding.texts) std::fprintf(stderr, "%s\n", text.c_str());
  std::printf("%s\n", result->dump().c_str());
  return finding.texts.empty() ? 0 : 1;
}
