// The records of a job, in memory: IDX files, a CSV file, text, or a counter without content.
//
// Files are read whole when they are opened (gzip or not) and checked to the last byte: a file that
// is cut, too long, ragged or not numeric is an error that names the file, and what was expected
// and found. After Open() a data set does not change and any thread may read it.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/result.h"

namespace ps::worker {

// Limit of all formats: orders are kept as 32-bit numbers.
inline constexpr std::uint64_t kMaxRecords = 0xffffffffu;

// What the labels of a data set are, to be held against the model before it trains.
struct LabelRange {
  bool whole = true;  // all are whole numbers, so that they can be classes
  double minimum = 0;
  double maximum = 0;
};

class Dataset {
 public:
  // Reads `source` (the job's training or test data) with the normalisation of `data`. The columns
  // `id_columns` of a CSV file are ids, not features.
  static Result<std::unique_ptr<Dataset>> Open(const DataSourceSpec& source, const DataSpec& data,
                                               const std::vector<std::string>& id_columns = {});

  virtual ~Dataset() = default;

  virtual std::uint64_t records() const = 0;
  // Of one record, without the batch: {28, 28} of an IDX file of images, {columns} of a CSV file,
  // empty of a counter.
  virtual const std::vector<std::int64_t>& feature_shape() const = 0;
  // Product of the shape; 0 of a counter.
  virtual std::uint64_t features() const = 0;
  // Ids of one record: one for each of the id columns, in their order; a counter has its number.
  virtual std::uint64_t id_columns() const = 0;
  // Labels of one record: 1, or of text one for each byte, which is the byte that follows.
  virtual std::uint64_t labels_per_record() const { return 1; }
  virtual LabelRange label_range() const = 0;
  // XXH3 of sizes and contents, the same wherever the same files are read.
  virtual std::uint64_t fingerprint() const = 0;

  // Copies records, one after the other: features() normalised values each, and the labels as
  // classes and as numbers. `labels`, `targets` and `ids` (id_columns() each) may be null. kInvalid
  // for a record that does not exist.
  virtual Status Read(std::span<const std::uint64_t> records, float* features, std::int64_t* labels,
                      float* targets, std::uint64_t* ids = nullptr) const = 0;
};

}  // namespace ps::worker
