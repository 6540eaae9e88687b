// `job explain`: what the schema of the job file says about its fields.
#include <algorithm>
#include <cmath>

#include "cli/commands.h"
#include "cli/job_schema.h"
#include "common/error_id.h"
#include "common/job/document.h"

namespace ps::cli {
namespace {

struct Field {
  std::string path;  // "training.workers"; keys of the maps of a list follow its name
  Json schema;
  bool required = false;
};

// The schema of the map that a value is, or may be, or that the values of a list are; null if none.
const Json& MapOf(const Json& schema) {
  if (MemberOf(schema, "properties").is_object()) return schema;
  if (const Json& items = MemberOf(schema, "items"); items.is_object()) return MapOf(items);
  for (const char* const any : {"oneOf", "anyOf"}) {
    for (const Json& choice : MemberOf(schema, any)) {
      if (const Json& map = MapOf(choice); map.is_object()) return map;
    }
  }
  return MemberOf(schema, "there is none");
}

std::vector<Field> KeysOf(const Field& parent) {
  std::vector<Field> keys;
  const Json& map = MapOf(parent.schema);
  const Json& required = MemberOf(map, "required");
  for (const auto& [name, schema] : MemberOf(map, "properties").items()) {
    Field field;
    field.path = parent.path.empty() ? name : parent.path + "." + name;
    field.schema = schema;
    field.required = std::find(required.begin(), required.end(), Json(name)) != required.end();
    keys.push_back(std::move(field));
  }
  return keys;
}

void CollectBelow(const Field& parent, std::vector<Field>& all) {
  for (Field& field : KeysOf(parent)) {
    all.push_back(field);
    CollectBelow(field, all);
  }
}

Field Root() { return Field{"", Json::parse(kJobSchema, nullptr, false), true}; }

std::vector<Field> AllFields() {
  std::vector<Field> all;
  CollectBelow(Root(), all);
  return all;
}

std::string ScalarText(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_float()) {
    // 1000000, not 1000000.0.
    const double number = value.get<double>();
    if (std::trunc(number) == number && std::abs(number) < 1e15) {
      return std::to_string(static_cast<std::int64_t>(number));
    }
  }
  return value.dump();
}

std::string JoinedOr(const Json& list, const char* between,
                     const std::function<std::string(const Json&)>& text_of) {
  std::string text;
  for (const Json& item : list) text += (text.empty() ? "" : between) + text_of(item);
  return text;
}

std::string TypeWord(const std::string& type) {
  if (type == "integer") return "whole number";
  if (type == "boolean") return "true or false";
  if (type == "string") return "text";
  if (type == "object") return "map";
  if (type == "array") return "list";
  return type;
}

std::string TypeText(const Json& schema) {
  if (schema.contains("const")) return ScalarText(schema["const"]);
  if (schema.contains("enum")) return "word";
  for (const char* const any : {"oneOf", "anyOf"}) {
    if (schema.contains(any)) return JoinedOr(schema[any], " or ", TypeText);
  }
  const Json& type = MemberOf(schema, "type");
  if (type.is_array()) {
    return JoinedOr(type, " or ", [](const Json& word) { return TypeWord(ScalarText(word)); });
  }
  const std::string word = TypeWord(TextOf(schema, "type"));
  const Json& items = MemberOf(schema, "items");
  return word == "list" && items.is_object() ? "list of: " + TypeText(items) : word;
}

std::string RangeText(const Json& schema, const char* least, const char* most) {
  const Json& low = MemberOf(schema, least);
  const Json& high = MemberOf(schema, most);
  const Json& above = MemberOf(schema, "exclusiveMinimum");
  const Json& below = MemberOf(schema, "exclusiveMaximum");
  std::string text;
  if (low.is_number()) text = ScalarText(low);
  if (above.is_number()) text = "more than " + ScalarText(above);
  if (high.is_number()) text += (text.empty() ? "at most " : " to ") + ScalarText(high);
  if (below.is_number()) text += (text.empty() ? "below " : " to below ") + ScalarText(below);
  if (low.is_number() && !high.is_number() && !below.is_number()) text = "at least " + text;
  return text;
}

// "1 to 1024", "relu, tanh", "2 to 64 of 1 to 1000000"; empty if anything goes.
std::string ValuesText(const Json& schema) {
  if (schema.contains("enum")) return JoinedOr(schema["enum"], ", ", ScalarText);
  for (const char* const any : {"oneOf", "anyOf"}) {
    if (!schema.contains(any)) continue;
    std::string text;
    for (const Json& choice : schema[any]) {
      const std::string one = ValuesText(choice);
      if (!one.empty()) text += (text.empty() ? "" : "; ") + one;
    }
    return text;
  }
  std::string text = RangeText(schema, "minimum", "maximum");
  if (const Json& items = MemberOf(schema, "items"); items.is_object()) {
    text = RangeText(schema, "minItems", "maxItems");
    const std::string each = ValuesText(items);
    if (!each.empty()) text += (text.empty() ? "each " : " of ") + each;
  }
  if (const std::string pattern = TextOf(schema, "pattern"); !pattern.empty()) text = pattern;
  return text;
}

std::string DefaultText(const Field& field) {
  if (field.schema.contains("default")) return ScalarText(field.schema["default"]);
  return field.required ? "required" : "";
}

Json JsonOf(const Field& field) {
  Json json{{"field", field.path},
            {"type", TypeText(field.schema)},
            {"required", field.required},
            {"description", TextOf(field.schema, "description")}};
  if (field.schema.contains("default")) json["default"] = field.schema["default"];
  const std::string values = ValuesText(field.schema);
  if (!values.empty()) json["values"] = values;
  return json;
}

// "training.workers" of "training.workers", "embedding_tables.width" of
// "embedding_tables[0].width".
std::string WithoutNumbers(const std::string& path) {
  std::string text;
  bool in_brackets = false;
  for (const char c : path) {
    if (c == '[') in_brackets = true;
    if (!in_brackets) text += c;
    if (c == ']') in_brackets = false;
  }
  return text;
}

Error UnknownField(const std::string& path, const std::vector<Field>& all) {
  std::vector<std::string> paths;
  std::string same_end;
  for (const Field& field : all) {
    paths.push_back(field.path);
    const std::size_t dot = field.path.rfind('.');
    if (dot != std::string::npos && field.path.substr(dot + 1) == path) {
      same_end += (same_end.empty() ? "`" : " or `") + field.path + "`";
    }
  }
  std::string what = "the job file has no field `" + Printable(path) + "`";
  if (!same_end.empty())
    return Error{ErrorId::kFieldUnknown, what + ", did you mean " + same_end + "?"};
  const std::string nearest = job::NearestWord(path, paths);
  if (!nearest.empty()) what += ", did you mean `" + nearest + "`?";
  return Error{ErrorId::kFieldUnknown, what};
}

void WriteKeys(std::ostream& out, const std::vector<Field>& keys, std::size_t skip) {
  Table table({"FIELD", "TYPE", "DEFAULT", "VALUES", "DESCRIPTION"});
  for (const Field& key : keys) {
    table.Add({key.path.substr(skip), TypeText(key.schema), DefaultText(key),
               ValuesText(key.schema), TextOf(key.schema, "description")});
  }
  out << table.ToString();
}

Result<ExitCode> Explain(Globals& globals, const std::string& asked, bool recursive) {
  const OutputFormat format = PS_TRY(globals.Format());
  std::ostream& out = globals.environment.out;
  Field field = Root();
  if (!asked.empty()) {
    const std::string path = WithoutNumbers(asked);
    const std::vector<Field> all = AllFields();
    const auto found = std::find_if(all.begin(), all.end(),
                                    [&path](const Field& one) { return one.path == path; });
    if (found == all.end()) return UnknownField(path, all);
    field = *found;
  }
  std::vector<Field> keys;
  if (recursive) {
    CollectBelow(field, keys);
  } else {
    keys = KeysOf(field);
  }
  Json json = JsonOf(field);
  if (!keys.empty()) {
    json["fields"] = Json::array();
    for (const Field& key : keys) json["fields"].push_back(JsonOf(key));
  }
  if (WriteStructured(out, format, json)) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    if (keys.empty()) out << field.path << "\n";
    for (const Field& key : keys) out << key.path << "\n";
    return ExitCode::kOk;
  }
  if (!asked.empty()) {
    std::vector<std::pair<std::string, std::string>> lines = {{"field", field.path},
                                                              {"type", TypeText(field.schema)}};
    const auto add = [&lines](const char* name, const std::string& text) {
      if (!text.empty()) lines.emplace_back(name, text);
    };
    add("values", ValuesText(field.schema));
    add("default", DefaultText(field));
    add("meaning", TextOf(field.schema, "description"));
    out << FieldsText(lines);
    if (!keys.empty()) out << "\n";
  }
  if (!keys.empty()) WriteKeys(out, keys, field.path.empty() ? 0 : field.path.size() + 1);
  return ExitCode::kOk;
}

}  // namespace

std::vector<std::string> JobFields() {
  std::vector<std::string> paths;
  for (const Field& field : AllFields()) paths.push_back(field.path);
  return paths;
}

void AddExplainCommand(CLI::App& group, Globals& globals) {
  CLI::App* command = AddCommand(group, "explain", "Show what a field of the job file means",
                                 "  ds-cli job explain\n"
                                 "  ds-cli job explain training.staleness\n"
                                 "  ds-cli job explain optimizer --recursive\n",
                                 globals);
  const auto field = std::make_shared<std::string>();
  const auto recursive = std::make_shared<bool>(false);
  command->add_option("field", *field, "Such as training.workers; none: those at the top");
  command->add_flag("-r,--recursive", *recursive, "All fields below it");
  command->callback([&globals, field, recursive] {
    globals.action = [&globals, field, recursive] { return Explain(globals, *field, *recursive); };
  });
}

}  // namespace ps::cli
