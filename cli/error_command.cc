// `ds-cli explain`: what an error means, and what to do about it.
#include <algorithm>

#include "cli/commands.h"
#include "common/error_catalogue.h"

namespace ps::cli {
namespace {

constexpr std::size_t kMarkdownColumns = 100;

struct ExplainOptions {
  std::string code;
  bool markdown = false;
};

int ExitStatusOf(const ErrorEntry& entry) { return static_cast<int>(ExitCodeOf(entry.code)); }

Json JsonOf(const ErrorEntry& entry) {
  return Json{{"code", ErrorIdName(entry.id)},
              {"title", entry.title},
              {"kind", ErrorCodeName(entry.code)},
              {"exit_status", ExitStatusOf(entry)},
              {"cause", entry.cause},
              {"next", entry.next}};
}

// A paragraph in lines of at most kMarkdownColumns.
std::string Paragraph(const std::string& text) {
  std::string lines;
  std::size_t column = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find(' ', at), text.size());
    const std::string word = text.substr(at, end - at);
    if (column > 0 && column + 1 + word.size() > kMarkdownColumns) {
      lines += '\n';
      column = 0;
    } else if (column > 0) {
      lines += ' ';
      ++column;
    }
    lines += word;
    column += word.size();
    at = end + 1;
  }
  return lines + "\n\n";
}

// docs/errors.md
std::string Markdown() {
  std::string text = "# Errors\n\n";
  text += Paragraph(
      "Every error of the programs has a code: `ds-cli` prints it (`ds-cli: error DS-E0801: ...`, "
      "or `\"code\"` of the object that `-o json` writes to standard error), the REST API has it "
      "in "
      "`error.code`, and daemons have it in their logs and in what they say when they end. "
      "`ds-cli explain CODE` says what stands here.");
  text += Paragraph(
      "A code means the same in every version and is never given to another error. Words in "
      "capitals stand for what the message names. Codes below 0100 are those of errors that have "
      "none of their own: their messages say all there is.");
  text += Paragraph("This page is `ds-cli explain --markdown`, made of common/error_catalogue.cc.");
  const auto groups = ErrorGroups();
  auto group = groups.begin();
  for (const ErrorEntry& entry : ErrorCatalogue()) {
    if (group != groups.end() && static_cast<int>(entry.id) >= group->first) {
      text += std::string("## ") + group->name + "\n\n";
      ++group;
    }
    text += "### " + ErrorIdName(entry.id) + ": " + entry.title + "\n\n";
    text += Paragraph(entry.cause);
    text += Paragraph(std::string("Next: ") + entry.next);
    text += Paragraph(std::string("(") + ErrorCodeName(entry.code) + "; ds-cli exits with " +
                      std::to_string(ExitStatusOf(entry)) + ")");
  }
  text.pop_back();
  return text;
}

void WriteAll(std::ostream& out, OutputFormat format) {
  Json list = Json::array();
  Table table({"CODE", "ERROR"});
  for (const ErrorEntry& entry : ErrorCatalogue()) {
    if (format == OutputFormat::kName) {
      out << ErrorIdName(entry.id) << "\n";
      continue;
    }
    list.push_back(JsonOf(entry));
    table.Add({ErrorIdName(entry.id), entry.title});
  }
  if (format == OutputFormat::kName) return;
  if (!WriteStructured(out, format, Json{{"errors", std::move(list)}})) out << table.ToString();
}

Result<ExitCode> Explain(Globals& globals, const ExplainOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  std::ostream& out = globals.environment.out;
  if (options.markdown) {
    out << Markdown();
    return ExitCode::kOk;
  }
  if (options.code.empty()) {
    WriteAll(out, format);
    return ExitCode::kOk;
  }
  const auto id = ParseErrorId(options.code);
  const ErrorEntry* const entry = id ? FindError(*id) : nullptr;
  if (entry == nullptr) {
    return Error{ErrorId::kErrorUnknown, "`" + options.code + "` is no code of an error here"};
  }
  if (WriteStructured(out, format, Json{{"error", JsonOf(*entry)}})) return ExitCode::kOk;
  if (format == OutputFormat::kName) {
    out << ErrorIdName(entry->id) << "\n";
    return ExitCode::kOk;
  }
  out << ErrorIdName(entry->id) << ": " << entry->title << "\n\n"
      << FieldsText({{"cause", entry->cause},
                     {"next", entry->next},
                     {"kind", ErrorCodeName(entry->code)},
                     {"exit status", std::to_string(ExitStatusOf(*entry))}});
  return ExitCode::kOk;
}

}  // namespace

std::vector<std::string> ErrorCodes() {
  std::vector<std::string> codes;
  for (const ErrorEntry& entry : ErrorCatalogue()) codes.push_back(ErrorIdName(entry.id));
  return codes;
}

void AddErrorCommand(CLI::App& app, Globals& globals) {
  CLI::App* command = AddCommand(
      app, "explain", "Say what the code of an error means, its cause and what to do next",
      "  ds-cli explain DS-E0801\n  ds-cli explain 801 -o json\n  ds-cli explain      # all "
      "codes\n",
      globals);
  const auto options = std::make_shared<ExplainOptions>();
  CLI::Option* code = command->add_option("code", options->code, "As in DS-E0801 (all)");
  command->add_flag("--markdown", options->markdown, "All of them as docs/errors.md has them")
      ->excludes(code);
  command->callback([&globals, options] {
    globals.action = [&globals, options] { return Explain(globals, *options); };
  });
}

}  // namespace ps::cli
