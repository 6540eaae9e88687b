#include <memory>
#include <string>
#include <vector>

#include "cli/certificates.h"
#include "cli/commands.h"
#include "common/error_id.h"
#include "common/net/list_file.h"

namespace ps::cli {
namespace {

struct CertificateOptions {
  std::string name;
  std::vector<std::string> hosts;
  std::string cert;
  std::string key;
  std::string ca = "ca.crt";
  std::string ca_key = "ca.key";
  int days = 365;
};

Result<ExitCode> Certify(Globals& globals, const CertificateOptions& options) {
  const OutputFormat format = PS_TRY(globals.Format());
  if (!net::IsListName(options.name)) {
    return Error{ErrorId::kOptionValue, "`" + options.name + "` is no name"};
  }
  CertificateOrder order;
  order.hosts = options.hosts;
  if (order.hosts.empty()) order.hosts = {options.name};
  order.days = options.days;
  order.certificate = options.cert.empty() ? options.name + "-api.crt" : options.cert;
  order.key = options.key.empty() ? options.name + "-api.key" : options.key;
  order.authority = options.ca;
  order.authority_key = options.ca_key;
  const MadeCertificate made = PS_TRY(MakeCertificate(order));
  std::ostream& out = globals.environment.out;
  if (WriteStructured(out, format,
                      Json{{"certificate", order.certificate.string()},
                           {"key", order.key.string()},
                           {"ca", options.ca},
                           {"ca_key", options.ca_key},
                           {"hosts", order.hosts},
                           {"until", net::DateText(made.until_ms)},
                           {"new_ca", made.new_authority}})) {
    return ExitCode::kOk;
  }
  if (format == OutputFormat::kName) {
    out << order.certificate.string() << "\n";
    return ExitCode::kOk;
  }
  std::string hosts;
  for (const std::string& host : order.hosts) hosts += (hosts.empty() ? "" : " ") + host;
  out << FieldsText({{"certificate", order.certificate.string()},
                     {"key", order.key.string()},
                     {"of the authority", options.ca},
                     {"for", hosts},
                     {"until", net::DateText(made.until_ms)}});
  if (made.new_authority) {
    globals.environment.err << "A new authority was made. Bring " << options.ca
                            << " to whoever calls the API (DS_CA), and keep " << options.ca_key
                            << " away from all of them\n";
  }
  return ExitCode::kOk;
}

}  // namespace

void AddCertificateCommand(CLI::App& auth_group, Globals& globals) {
  CLI::App* const command =
      AddCommand(auth_group, "certificate",
                 "Make a certificate for the REST API of a coordinator, and the authority it is of",
                 "  ds-cli auth certificate node1 --host node1 --host 10.0.0.7\n"
                 "  ds-cli auth certificate node2 --ca ca.crt --ca-key ca.key --days 90\n\n"
                 "A key that is there is kept, and its certificate made anew.\n",
                 globals);
  const auto options = std::make_shared<CertificateOptions>();
  command->add_option("name", options->name, "Of the coordinator's host")
      ->required()
      ->type_name("NAME");
  command
      ->add_option("--host", options->hosts,
                   "Name or address that it is for, as in URLs; may be repeated (NAME)")
      ->allow_extra_args(false)
      ->type_name("HOST");
  command->add_option("--cert", options->cert, "Where it goes (NAME-api.crt)")->type_name("FILE");
  command->add_option("--key", options->key, "Its secret key (NAME-api.key)")->type_name("FILE");
  command->add_option("--ca", options->ca, "The authority, made if it is not there")
      ->type_name("FILE")
      ->capture_default_str();
  command->add_option("--ca-key", options->ca_key, "The authority's secret key")
      ->type_name("FILE")
      ->capture_default_str();
  command->add_option("--days", options->days, "How long it is valid (365)")
      ->check(CLI::Range(1, 3650));
  command->callback([&globals, options] {
    globals.action = [&globals, options] { return Certify(globals, *options); };
  });
}

}  // namespace ps::cli
