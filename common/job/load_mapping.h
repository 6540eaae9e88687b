// Which tensors and tables of rows of a new job begin with the values of others.
//
// Each source of checkpoint.load names tensors and tables of what it is made of,
// a checkpoint or a file, by patterns, and may rename them. What has the new name
// in the job gets its values: of the same shape, or with `grow` at least as large
// in each dimension, whose leading corner it becomes. What no source names keeps
// its initial values. Nothing is left out silently: a pattern that names nothing,
// a tensor without a place and a place with two sources are errors, which name
// the nearest name. The mapping follows from names and shapes alone, so that the
// coordinator checks what servers and tasks will do. Pure, any thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/job/job_spec.h"
#include "common/layout/tensor_copy.h"
#include "common/messages/control.h"
#include "common/result.h"

namespace ps {

// Of a model, its checkpoint, or a file.
struct ModelParts {
  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::uint64_t begin = 0;  // its first element, in the space of all tensors
    bool counter = false;     // whole numbers, of which the largest one counts

    std::uint64_t elements() const;
    // kInvalid if the shape has not so many elements.
    static Result<Tensor> Of(std::string name, std::vector<std::int64_t> shape,
                             std::uint64_t elements, std::uint64_t begin, bool counter);
  };
  struct Table {
    std::string name;
    std::uint32_t width = 0;
  };
  std::vector<Tensor> tensors;
  std::vector<Table> tables;

  // kInvalid if its tensors do not fit its tables (it came over a wire).
  static Result<ModelParts> Of(const control::LayoutT& layout);
};

// Places in the lists of the source and of the job.
struct LoadPair {
  std::size_t from = 0;
  std::size_t to = 0;

  friend bool operator==(const LoadPair&, const LoadPair&) = default;
};

struct LoadMapping {
  std::vector<LoadPair> tensors;
  std::vector<LoadPair> tables;
};

// kInvalid, with all that is wrong, one finding a line.
Result<LoadMapping> MapLoad(const LoadSourceSpec& spec, const ModelParts& source,
                            const ModelParts& job);

// The same of spec.checkpoint.load[number], which each finding names.
Result<LoadMapping> MapLoadSource(const JobSpec& spec, std::size_t number, const ModelParts& source,
                                  const ModelParts& job);

// "checkpoint.load[2] (4@7): ", for messages.
std::string LoadSourceName(const JobSpec& spec, std::size_t number);

// Finds what two sources would fill.
class LoadClaims {
 public:
  // kInvalid if another source has claimed one of them. `source` is as LoadSourceName() has it.
  Status Add(const LoadMapping& mapping, const ModelParts& job, const std::string& source);
  Status AddTensor(const std::string& name, const std::string& source);

 private:
  std::map<std::string, std::string> tensors_;  // to who claims them
  std::map<std::string, std::string> tables_;
};

}  // namespace ps
