// A job file as a plain tree of maps, lists and scalars with line numbers.
//
// YAML and JSON both become this tree, so that one reader checks both. The
// input is hostile: its size, depth and number of nodes are bounded, aliases are
// refused (so nothing expands), duplicate keys, bad UTF-8 and further documents
// are errors, and no exception of a parser passes this border.
#pragma once

#include <string>
#include <vector>

#include "common/result.h"

namespace ps::job {

inline constexpr std::size_t kDocumentBytesMax = std::size_t{1} << 20;
inline constexpr int kDocumentDepthMax = 32;
inline constexpr std::size_t kDocumentNodesMax = 100'000;

struct Node {
  enum class Kind { kNull, kScalar, kList, kMap };

  Kind kind = Kind::kNull;
  bool quoted = false;            // a scalar that is text whatever it looks like
  int line = 0;                   // from 1; 0: unknown (JSON)
  std::string text;               // of a scalar
  std::vector<Node> items;        // of a list, or the values of a map
  std::vector<std::string> keys;  // of a map, one for each item

  const Node* Find(const std::string& key) const;
};

// kInvalid with "FILE:LINE: what" (one line per finding).
Result<Node> ParseYamlDocument(const std::string& text, const std::string& file_name);
Result<Node> ParseJsonDocument(const std::string& text, const std::string& file_name);

// "the number 3", "the text `abc`", "a list", ... for messages.
std::string DescribeNode(const Node& node);

// The nearest of `candidates` within a third of the word's length (at least 2 edits), or "".
std::string NearestWord(const std::string& word, const std::vector<std::string>& candidates);

}  // namespace ps::job
