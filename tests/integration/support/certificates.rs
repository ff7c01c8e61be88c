//! Certificates, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What a server certificate for 127.0.0.1 needs.
pub(crate) const FOR_LOOPBACK: &str = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth";

/// A folder of certificates: `<name>.pem`, with its key in `<name>-key.pem`.
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    pub(crate) fn new(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// A certificate authority `ca`, a certificate `server` for 127.0.0.1, and a certificate
    /// `client`.
    pub(crate) fn of_authority_server_and_client(folder: &Path) -> Self {
        let made = Self::new(folder);
        made.authority("ca");
        made.issued("server", "ca", FOR_LOOPBACK, 2);
        made.issued("client", "ca", "extendedKeyUsage=clientAuth", 2);
        made
    }

    /// Makes an authority.
    pub(crate) fn authority(&self, name: &str) {
        self.self_signed(name, &[]);
    }

    /// Makes a certificate as `openssl req -x509` does, with these options.
    pub(crate) fn self_signed(&self, name: &str, options: &[&str]) {
        let line = format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}-key.pem -out {name}.pem \
             -days 2 -subj /CN={name}"
        );
        let arguments: Vec<&str> = line.split_whitespace().chain(options.iter().copied()).collect();
        self.openssl(&arguments);
    }

    /// Makes a certificate that an authority has issued, with these extensions.
    pub(crate) fn issued(&self, name: &str, authority: &str, extensions: &str, days: i32) {
        std::fs::write(self.0.join(format!("{name}.ext")), extensions).unwrap();
        let request = format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}-key.pem -out {name}.csr \
             -subj /CN={name}"
        );
        let issue = format!(
            "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}-key.pem -CAcreateserial -out {name}.pem \
             -days {days} -extfile {name}.ext"
        );
        for line in [request, issue] {
            self.openssl(&line.split_whitespace().collect::<Vec<_>>());
        }
    }

    fn openssl(&self, arguments: &[&str]) {
        let mut command = Command::new("openssl");
        let output = command.args(arguments).current_dir(&self.0).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// The path of a file.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Puts the certificate and the key of one name in place of those of another.
    pub(crate) fn replace(&self, name: &str, by: &str) {
        for end in [".pem", "-key.pem"] {
            // A new file, as a mounted secret or a tool for certificates writes it.
            let new = self.0.join("new");
            std::fs::copy(self.0.join(format!("{by}{end}")), &new).unwrap();
            std::fs::rename(new, self.0.join(format!("{name}{end}"))).unwrap();
        }
    }
}
