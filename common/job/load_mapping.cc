#include "common/job/load_mapping.h"

#include <algorithm>
#include <optional>
#include <set>

#include "common/error_id.h"
#include "common/job/document.h"

namespace ps {
namespace {

constexpr std::size_t kFindingsMax = 20;
constexpr std::size_t kNamesShown = 6;
constexpr std::uint64_t kElementsMax = std::uint64_t{1} << 62;

std::string ShapeText(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const auto extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + text + "]";
}

// `*` stands for any text, `?` for one character.
bool Matches(const std::string& pattern, const std::string& name) {
  std::size_t at = 0;
  std::size_t in_name = 0;
  std::size_t star = std::string::npos;
  std::size_t resume = 0;
  while (in_name < name.size()) {
    if (at < pattern.size() && pattern[at] == '*') {
      star = at++;
      resume = in_name;
    } else if (at < pattern.size() && (pattern[at] == '?' || pattern[at] == name[in_name])) {
      ++at;
      ++in_name;
    } else if (star != std::string::npos) {
      at = star + 1;
      in_name = ++resume;
    } else {
      return false;
    }
  }
  while (at < pattern.size() && pattern[at] == '*') ++at;
  return at == pattern.size();
}

// The nearest of the names, or the first ones.
std::string Suggest(const std::string& word, const std::vector<std::string>& names) {
  if (names.empty()) return "there are none";
  const std::string nearest = job::NearestWord(word, names);
  if (!nearest.empty()) return "did you mean `" + nearest + "`?";
  std::string text = "there are ";
  for (std::size_t i = 0; i < std::min(names.size(), kNamesShown); ++i) {
    text += (i == 0 ? "`" : ", `") + names[i] + "`";
  }
  return names.size() > kNamesShown ? text + ", ..." : text;
}

// The name in the job: that of the whole name, else of its longest beginning, else its own.
const std::pair<std::string, std::string>* FindRename(const LoadSourceSpec& spec,
                                                      const std::string& name) {
  const std::pair<std::string, std::string>* found = nullptr;
  for (const auto& rename : spec.rename) {
    const std::string& from = rename.first;
    if (from == name) return &rename;
    if (from.back() == '*' && name.compare(0, from.size() - 1, from, 0, from.size() - 1) == 0 &&
        (found == nullptr || found->first.size() < from.size())) {
      found = &rename;
    }
  }
  return found;
}

std::string Renamed(const std::pair<std::string, std::string>* rename, const std::string& name) {
  if (rename == nullptr) return name;
  if (rename->first.back() != '*') return rename->second;
  return rename->second.substr(0, rename->second.size() - 1) +
         name.substr(rename->first.size() - 1);
}

// As LoadSourceName() has it, for the end of a sentence.
std::string WithoutColon(const std::string& source) {
  return source.substr(0, source.find_last_not_of(": ") + 1);
}

template <typename Part>
std::vector<std::string> NamesOf(const std::vector<Part>& parts) {
  std::vector<std::string> names;
  for (const Part& part : parts) names.push_back(part.name);
  return names;
}

class Mapper {
 public:
  Mapper(const LoadSourceSpec& spec) : spec_(spec) {}

  // `check` says what is wrong with a pair, or nothing.
  template <typename Part, typename Check>
  std::vector<LoadPair> Map(const std::vector<std::string>& patterns, const char* key,
                            const char* kind, const std::vector<Part>& from,
                            const std::vector<Part>& to, Check check) {
    const std::vector<std::string> from_names = NamesOf(from);
    const std::vector<std::string> to_names = NamesOf(to);
    std::map<std::string, std::size_t> places;
    for (std::size_t i = 0; i < to.size(); ++i) places.emplace(to[i].name, i);
    std::vector<bool> named(from.size());
    for (const std::string& pattern : patterns) {
      bool any = false;
      for (std::size_t i = 0; i < from.size(); ++i) {
        if (!Matches(pattern, from[i].name)) continue;
        any = true;
        named[i] = true;
      }
      if (!any) {
        Find(std::string(key) + ": `" + pattern + "` names no " + kind + " of the source, " +
             Suggest(pattern, from_names));
      }
    }
    std::vector<LoadPair> pairs;
    std::map<std::size_t, std::size_t> taken;  // place to who has it
    for (std::size_t i = 0; i < from.size(); ++i) {
      if (!named[i]) continue;
      const auto* const rename = FindRename(spec_, from[i].name);
      if (rename != nullptr) renames_used_.insert(rename->first);
      const std::string name = Renamed(rename, from[i].name);
      const std::string what = std::string(kind) + " `" + from[i].name + "`" +
                               (name == from[i].name ? "" : ", renamed to `" + name + "`,");
      const auto at = places.find(name);
      if (at == places.end()) {
        Find(what + " has no place in the job's model: " + Suggest(name, to_names));
        continue;
      }
      const auto [other, fresh] = taken.emplace(at->second, i);
      if (!fresh) {
        Find(what + " has the place of `" + from[other->second].name + "`");
        continue;
      }
      const std::string wrong = check(from[i], to[at->second]);
      if (!wrong.empty()) {
        Find(what + " " + wrong);
        continue;
      }
      pairs.push_back({i, at->second});
    }
    return pairs;
  }

  void CheckRenames(const ModelParts& source) {
    std::vector<std::string> names = NamesOf(source.tensors);
    for (const ModelParts::Table& table : source.tables) names.push_back(table.name);
    for (const auto& [from, to] : spec_.rename) {
      if (!renames_used_.contains(from)) {
        Find("rename: `" + from + "` is the name of nothing that is loaded, " +
             Suggest(from, names));
      }
    }
  }

  const std::string& findings() const { return findings_; }

 private:
  void Find(const std::string& what) {
    if (++found_ > kFindingsMax) return;
    findings_ += (findings_.empty() ? "" : "\n") + what;
  }

  const LoadSourceSpec& spec_;
  std::set<std::string> renames_used_;
  std::string findings_;
  std::size_t found_ = 0;
};

}  // namespace

std::uint64_t ModelParts::Tensor::elements() const {
  std::uint64_t product = 1;
  for (const auto extent : shape) product *= static_cast<std::uint64_t>(extent);
  return product;
}

Result<ModelParts::Tensor> ModelParts::Tensor::Of(std::string name, std::vector<std::int64_t> shape,
                                                  std::uint64_t elements, std::uint64_t begin,
                                                  bool counter) {
  std::uint64_t product = 1;
  bool fits = true;
  for (const std::int64_t extent : shape) {
    fits = fits && extent >= 0;
    // Sizes that are multiplied before a 0 must not overflow either.
    if (fits && extent > 0) {
      fits = product <= kElementsMax / static_cast<std::uint64_t>(extent);
      if (fits) product *= static_cast<std::uint64_t>(extent);
    }
  }
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) product = 0;
  if (!fits || product != elements) {
    return Error{ErrorCode::kInvalid, "tensor `" + name + "` has " + std::to_string(elements) +
                                          " elements, its shape is " + ShapeText(shape)};
  }
  return Tensor{std::move(name), std::move(shape), begin, counter};
}

Result<ModelParts> ModelParts::Of(const control::LayoutT& layout) {
  ModelParts parts;
  std::uint64_t begin = 0;
  for (const auto& table : layout.tables) {
    for (const auto& tensor : table->tensors) {
      if (tensor->elements > table->elements ||
          tensor->offset > table->elements - tensor->elements) {
        return Error{ErrorCode::kInvalid,
                     "tensor `" + tensor->name + "` lies outside of table `" + table->name + "`"};
      }
      std::vector<std::int64_t> shape;
      for (const auto& extent : tensor->shape) shape.push_back(extent->size);
      parts.tensors.push_back(
          PS_TRY(Tensor::Of(tensor->name, std::move(shape), tensor->elements,
                            begin + tensor->offset, table->rule == control::TableRule::Maximum)));
    }
    begin += table->elements;
  }
  for (const auto& table : layout.row_tables) parts.tables.push_back({table->name, table->width});
  return parts;
}

Result<LoadMapping> MapLoad(const LoadSourceSpec& spec, const ModelParts& source,
                            const ModelParts& job) {
  Mapper mapper(spec);
  LoadMapping mapping;
  mapping.tensors = mapper.Map(
      spec.tensors, "tensors", "tensor", source.tensors, job.tensors,
      [&spec](const ModelParts::Tensor& from, const ModelParts::Tensor& to) -> std::string {
        const std::string shapes =
            "has the shape " + ShapeText(from.shape) + ", in the job it is " + ShapeText(to.shape);
        if (from.counter != to.counter) {
          return from.counter ? "is a counter, in the job it is not"
                              : "is no counter, in the job it is";
        }
        if (from.shape == to.shape) return "";
        if (!TensorCopy::CanHold(to.shape, from.shape)) {
          return shapes + (from.shape.size() == to.shape.size()
                               ? ": it is larger, and nothing is cut off"
                               : ": it has another number of dimensions");
        }
        return spec.grow ? "" : shapes + ": `grow: true` makes it the leading corner";
      });
  mapping.tables = mapper.Map(
      spec.tables, "tables", "table", source.tables, job.tables,
      [&spec](const ModelParts::Table& from, const ModelParts::Table& to) -> std::string {
        if (from.width == to.width) return "";
        const std::string widths = "has rows of " + std::to_string(from.width) +
                                   " values, in the job of " + std::to_string(to.width);
        if (from.width > to.width) return widths + ": they are wider, and nothing is cut off";
        return spec.grow ? "" : widths + ": `grow: true` makes them the first ones";
      });
  mapper.CheckRenames(source);
  if (!mapper.findings().empty()) return Error{ErrorId::kLoadMapping, mapper.findings()};
  return mapping;
}

Result<LoadMapping> MapLoadSource(const JobSpec& spec, std::size_t number, const ModelParts& source,
                                  const ModelParts& job) {
  auto mapping = MapLoad(spec.checkpoint.load[number], source, job);
  if (mapping.ok()) return mapping;
  const std::string name = LoadSourceName(spec, number);
  std::string text = name;
  for (const char c : mapping.error().message) {
    text += c;
    if (c == '\n') text += name;
  }
  Error error = mapping.error();
  error.message = std::move(text);
  return error;
}

std::string LoadSourceName(const JobSpec& spec, std::size_t number) {
  const LoadSourceSpec& source = spec.checkpoint.load[number];
  return "checkpoint.load[" + std::to_string(number) + "] (" +
         (source.from.empty() ? source.file : source.from) + "): ";
}

Status LoadClaims::AddTensor(const std::string& name, const std::string& source) {
  const auto [other, fresh] = tensors_.emplace(name, source);
  if (fresh) return Ok();
  return Error{ErrorId::kLoadMapping,
               source + "tensor `" + name +
                   "` of the job has another source already: " + WithoutColon(other->second)};
}

Status LoadClaims::Add(const LoadMapping& mapping, const ModelParts& job,
                       const std::string& source) {
  for (const LoadPair& pair : mapping.tensors) {
    PS_TRY(AddTensor(job.tensors[pair.to].name, source));
  }
  for (const LoadPair& pair : mapping.tables) {
    const std::string& name = job.tables[pair.to].name;
    const auto [other, fresh] = tables_.emplace(name, source);
    if (!fresh) {
      return Error{ErrorId::kLoadMapping,
                   source + "table `" + name +
                       "` of the job has another source already: " + WithoutColon(other->second)};
    }
  }
  return Ok();
}

}  // namespace ps
