#include "common/net/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <utility>

#include "common/error_id.h"

namespace ps {
namespace {

// %J: the message with everything escaped that a JSON string may not hold as it is.
class JsonMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    static constexpr char kHex[] = "0123456789abcdef";
    const auto put = [&out](const char* text) {
      out.append(text, text + std::char_traits<char>::length(text));
    };
    for (const char c : message.payload) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"') {
        put("\\\"");
      } else if (c == '\\') {
        put("\\\\");
      } else if (c == '\n') {
        put("\\n");
      } else if (byte < 0x20) {
        put("\\u00");
        out.push_back(kHex[byte >> 4]);
        out.push_back(kHex[byte & 15]);
      } else {
        out.push_back(c);
      }
    }
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return std::make_unique<JsonMessage>();
  }
};

// %Q: the priority as sd-daemon(3) has it; lines after the first get theirs too.
class JournalMessage final : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    const char priority[] = {'<', Priority(message.level), '>'};
    out.append(priority, priority + sizeof(priority));
    for (const char c : message.payload) {
      out.push_back(c);
      if (c == '\n') out.append(priority, priority + sizeof(priority));
    }
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return std::make_unique<JournalMessage>();
  }

 private:
  static char Priority(spdlog::level::level_enum level) {
    switch (level) {
      case spdlog::level::critical: return '2';
      case spdlog::level::err: return '3';
      case spdlog::level::warn: return '4';
      case spdlog::level::info: return '6';
      default: return '7';
    }
  }
};

Result<spdlog::level::level_enum> ParseLevel(const std::string& level) {
  const auto parsed = spdlog::level::from_str(level == "warning" ? "warn" : level);
  if (parsed == spdlog::level::off && level != "off") {
    return Error{ErrorId::kOptionValue,
                 "log level '" + level + "' is not one of trace, debug, info, warn, error, off"};
  }
  return parsed;
}

}  // namespace

Status SetUpLogging(const std::string& role, const std::string& level, const std::string& format) {
  const auto parsed = PS_TRY(ParseLevel(level));
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  if (format == "text") {
    formatter->set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %L %n: %v");
  } else if (format == "json") {
    formatter->add_flag<JsonMessage>('J').set_pattern(
        R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","role":"%n","pid":%P,"message":"%J"})");
  } else if (format == "journal") {
    formatter->add_flag<JournalMessage>('Q').set_pattern("%Q");
  } else {
    return Error{ErrorId::kOptionValue,
                 "log format '" + format + "' is not one of text, json, journal"};
  }
  auto logger =
      std::make_shared<spdlog::logger>(role, std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_formatter(std::move(formatter));
  logger->set_level(parsed);
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
  return Ok();
}

Status SetLogLevel(const std::string& level) {
  spdlog::default_logger()->set_level(PS_TRY(ParseLevel(level)));
  return Ok();
}

}  // namespace ps
