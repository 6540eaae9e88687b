// What a running job looks like while somebody waits for it.
//
// On a terminal one block is redrawn in place; else a line is written every few
// seconds and at each change of phase. All of it goes to the error stream.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/environment.h"
#include "cli/output.h"

namespace ps::cli {

// The block and the line for a JOB of the REST interface; members may be missing.
std::vector<std::string> ProgressBlock(const Json& job);
std::string ProgressLine(const Json& job);

// Printable, and cut to the terminal's width.
std::string Fitted(const std::string& text, int columns);

// Values over all workers; empty if none reports one.
std::optional<double> LargestOfWorkers(const Json& job, const char* key);

// succeeded, failed or cancelled.
bool IsFinished(const Json& job);

// What came out, as "key  value" lines. The last checkpoint as `ds-cli ckpt` takes it.
std::string ResultText(const Json& job);

class ProgressView {
 public:
  explicit ProgressView(Environment& environment) : environment_(environment) {}

  void Show(const Json& job);
  // A line that stays, above the block.
  void Note(const std::string& text);
  // Leaves the block as it is.
  void Close() { drawn_lines_ = 0; }

 private:
  void Erase();

  Environment& environment_;
  std::size_t drawn_lines_ = 0;
  std::vector<std::string> block_;
  std::string phase_;
  std::int64_t last_line_ms_ = 0;
};

}  // namespace ps::cli
