#include "common/job/document.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "common/error_id.h"

namespace ps::job {
namespace {

std::string Place(const std::string& file, int line) {
  return line > 0 ? file + ":" + std::to_string(line) : file;
}

// Line of the first byte that is not UTF-8 or is a NUL; 0 if there is none.
int BadUtf8Line(const std::string& text) {
  int line = 1;
  std::size_t i = 0;
  while (i < text.size()) {
    const auto byte = static_cast<unsigned char>(text[i]);
    std::size_t more = 0;
    std::uint32_t code = byte;
    std::uint32_t smallest = 0;
    if (byte == '\n') ++line;
    if (byte == 0) return line;
    if (byte >= 0x80) {
      if ((byte & 0xe0) == 0xc0) {
        more = 1, code = byte & 0x1fU, smallest = 0x80;
      } else if ((byte & 0xf0) == 0xe0) {
        more = 2, code = byte & 0x0fU, smallest = 0x800;
      } else if ((byte & 0xf8) == 0xf0) {
        more = 3, code = byte & 0x07U, smallest = 0x10000;
      } else {
        return line;
      }
    }
    if (text.size() - i <= more) return line;
    for (std::size_t k = 1; k <= more; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0) != 0x80) return line;
      code = (code << 6) | (next & 0x3fU);
    }
    if (code < smallest || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return line;
    i += more + 1;
  }
  return 0;
}

Status CheckText(const std::string& text, const std::string& file) {
  if (text.size() > kDocumentBytesMax) {
    return Error{ErrorId::kJobFileSyntax, file + ": is " + std::to_string(text.size()) +
                                              " bytes long; a job file has at most 1 MiB"};
  }
  if (const int line = BadUtf8Line(text); line > 0) {
    return Error{ErrorId::kJobFileSyntax,
                 Place(file, line) + ": holds bytes that are not UTF-8 text"};
  }
  return Ok();
}

// Thrown through yaml-cpp's parser and caught in ParseYamlDocument.
struct Refused {
  int line;
  std::string what;
};

class TreeBuilder : public YAML::EventHandler {
 public:
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override {
    Node node;
    node.line = mark.line + 1;
    Add(std::move(node));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Refused{mark.line + 1, "aliases (*name) are not supported, write the value out"};
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& value) override {
    Node node;
    node.line = mark.line + 1;
    node.text = value;
    node.quoted = tag == "!" || tag == "tag:yaml.org,2002:str";
    const bool null = !node.quoted && (value.empty() || value == "~" || value == "null");
    node.kind = null ? Node::Kind::kNull : Node::Kind::kScalar;
    Add(std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    Open(Node::Kind::kList, mark.line + 1);
  }
  void OnSequenceEnd() override { Close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    Open(Node::Kind::kMap, mark.line + 1);
  }
  void OnMapEnd() override { Close(); }

  Node TakeRoot() { return std::move(root_); }

 private:
  struct Level {
    Node node;
    std::string key;
    int key_line = 0;
    bool has_key = false;
  };

  void Open(Node::Kind kind, int line) {
    if (levels_.size() >= static_cast<std::size_t>(kDocumentDepthMax)) {
      throw Refused{line, "is nested deeper than " + std::to_string(kDocumentDepthMax) + " levels"};
    }
    if (!levels_.empty() && levels_.back().node.kind == Node::Kind::kMap &&
        !levels_.back().has_key) {
      throw Refused{line, "a key must be a word, not a list or a map"};
    }
    Level level;
    level.node.kind = kind;
    level.node.line = line;
    levels_.push_back(std::move(level));
  }

  void Close() {
    Node node = std::move(levels_.back().node);
    levels_.pop_back();
    Add(std::move(node));
  }

  void Add(Node node) {
    if (++nodes_ > kDocumentNodesMax) {
      throw Refused{node.line, "has more than " + std::to_string(kDocumentNodesMax) + " values"};
    }
    if (levels_.empty()) {
      root_ = std::move(node);
      return;
    }
    Level& level = levels_.back();
    if (level.node.kind == Node::Kind::kList) {
      level.node.items.push_back(std::move(node));
    } else if (!level.has_key) {
      if (node.kind != Node::Kind::kScalar) throw Refused{node.line, "a key is missing before `:`"};
      level.key = std::move(node.text);
      level.key_line = node.line;
      level.has_key = true;
      if (!keys_.emplace(levels_.size(), level.node.line, level.key).second &&
          level.node.Find(level.key) != nullptr) {
        throw Refused{level.key_line, "`" + level.key + "` is given twice, first in line " +
                                          std::to_string(level.node.Find(level.key)->line)};
      }
    } else {
      // A message about a key's value names the line of the key.
      node.line = level.key_line;
      level.node.keys.push_back(std::move(level.key));
      level.node.items.push_back(std::move(node));
      level.has_key = false;
    }
  }

  std::vector<Level> levels_;
  Node root_;
  std::size_t nodes_ = 0;
  // Sorts out keys that cannot be duplicates, so that a map of many keys is not searched for each.
  std::set<std::tuple<std::size_t, int, std::string>> keys_;
};

// False if the tree is too deep.
bool FromJson(const nlohmann::json& json, int depth, Node& node) {
  if (depth > kDocumentDepthMax) return false;
  switch (json.type()) {
    case nlohmann::json::value_t::object:
      node.kind = Node::Kind::kMap;
      for (const auto& item : json.items()) {
        node.keys.push_back(item.key());
        node.items.emplace_back();
        if (!FromJson(item.value(), depth + 1, node.items.back())) return false;
      }
      return true;
    case nlohmann::json::value_t::array:
      node.kind = Node::Kind::kList;
      for (const auto& item : json) {
        node.items.emplace_back();
        if (!FromJson(item, depth + 1, node.items.back())) return false;
      }
      return true;
    case nlohmann::json::value_t::string:
      node.kind = Node::Kind::kScalar;
      node.quoted = true;
      node.text = json.get_ref<const std::string&>();
      return true;
    case nlohmann::json::value_t::null: return true;
    default:
      node.kind = Node::Kind::kScalar;
      node.text = json.dump();
      return true;
  }
}

std::size_t EditDistance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

}  // namespace

const Node* Node::Find(const std::string& key) const {
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (keys[i] == key) return &items[i];
  }
  return nullptr;
}

Result<Node> ParseYamlDocument(const std::string& text, const std::string& file_name) {
  PS_TRY(CheckText(text, file_name));
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    TreeBuilder tree;
    if (!parser.HandleNextDocument(tree)) {
      return Error{ErrorId::kJobFileSyntax, file_name + ": is empty"};
    }
    Node root = tree.TakeRoot();
    TreeBuilder rest;
    if (parser.HandleNextDocument(rest)) {
      return Error{ErrorId::kJobFileSyntax,
                   file_name + ": holds more than one document; a job file describes one job"};
    }
    return root;
  } catch (const Refused& refused) {
    return Error{ErrorId::kJobFileSyntax, Place(file_name, refused.line) + ": " + refused.what};
  } catch (const YAML::Exception& error) {
    return Error{ErrorId::kJobFileSyntax,
                 Place(file_name, error.mark.is_null() ? 0 : error.mark.line + 1) +
                     ": is not valid YAML: " + error.msg};
  } catch (const std::exception& error) {
    return Error{ErrorId::kJobFileSyntax, file_name + ": is not valid YAML: " + error.what()};
  }
}

Result<Node> ParseJsonDocument(const std::string& text, const std::string& file_name) {
  PS_TRY(CheckText(text, file_name));
  std::vector<std::set<std::string>> keys;
  std::string refused;
  std::size_t nodes = 0;
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth > kDocumentDepthMax && refused.empty()) {
        refused = "is nested deeper than " + std::to_string(kDocumentDepthMax) + " levels";
      }
    }
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
      refused = "`" + parsed.get<std::string>() + "` is given twice";
    }
    if (event != Event::key && ++nodes > kDocumentNodesMax && refused.empty()) {
      refused = "has more than " + std::to_string(kDocumentNodesMax) + " values";
    }
    return true;
  };
  try {
    const nlohmann::json json = nlohmann::json::parse(text, check);
    if (!refused.empty()) return Error{ErrorId::kJobFileSyntax, file_name + ": " + refused};
    Node root;
    if (!FromJson(json, 0, root)) {
      return Error{ErrorId::kJobFileSyntax, file_name + ": is nested deeper than " +
                                                std::to_string(kDocumentDepthMax) + " levels"};
    }
    return root;
  } catch (const std::exception& error) {
    return Error{ErrorId::kJobFileSyntax, file_name + ": is not valid JSON: " + error.what()};
  }
}

std::string DescribeNode(const Node& node) {
  switch (node.kind) {
    case Node::Kind::kNull: return "nothing";
    case Node::Kind::kList: return "a list";
    case Node::Kind::kMap: return "a map";
    case Node::Kind::kScalar: break;
  }
  std::string shown = node.text.size() > 60 ? node.text.substr(0, 57) + "..." : node.text;
  if (!node.quoted) {
    double number = 0;
    const char* end = node.text.data() + node.text.size();
    const auto [rest, failure] = std::from_chars(node.text.data(), end, number);
    if (failure == std::errc() && rest == end) return "the number " + shown;
    if (node.text == "true" || node.text == "false") return shown;
  }
  return "the text `" + shown + "`";
}

std::string NearestWord(const std::string& word, const std::vector<std::string>& candidates) {
  if (word.size() > 64) return {};
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, word.size() / 3) + 1;
  for (const auto& candidate : candidates) {
    const std::size_t distance = EditDistance(word, candidate);
    // "lr" is two edits from every word of two letters: something must remain.
    if (distance < best_distance && distance < std::max(word.size(), candidate.size())) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

}  // namespace ps::job
