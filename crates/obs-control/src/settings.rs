//! Where the server is and how far it is trusted.

use rustls_platform_verifier::ConfigVerifierExt as _;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode};

/// Why an address cannot be used. It never shows the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(String);

fn fail<T>(message: impl Into<String>) -> Result<T, SettingsError> {
    Err(SettingsError(message.into()))
}

/// A server, as a `postgres://` address names it.
#[derive(Clone)]
pub struct PostgresSettings {
    pub(crate) config: tokio_postgres::Config,
    pub(crate) tls: rustls::ClientConfig,
}

impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("hosts", &self.config.get_hosts())
            .field("database", &self.config.get_dbname())
            .finish_non_exhaustive()
    }
}

fn is_local(h: &Host) -> bool {
    match h {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback())
        }
    }
}

impl PostgresSettings {
    /// Reads `postgres://USER@HOST:PORT/DATABASE?sslmode=…&sslrootcert=FILE`.
    ///
    /// Certificates are always checked: `require` means what `verify-full` does. Without `sslmode`
    /// TLS is required unless all hosts are this machine.
    ///
    /// # Errors
    /// When the address is none, or the certificates cannot be read.
    pub fn new(address: &str, password: Option<&str>) -> Result<Self, SettingsError> {
        let Ok(mut url) = url::Url::parse(address) else {
            return fail("not an address; write postgres://USER@HOST/DATABASE");
        };
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return fail("the address must begin with postgres://");
        }
        let (mut mode, mut roots, mut rest) = (None, None, Vec::new());
        for (k, v) in url.query_pairs().into_owned() {
            match k.as_str() {
                "sslmode" => mode = Some(v),
                "sslrootcert" => roots = Some(v),
                _ => rest.push((k, v)),
            }
        }
        url.set_query(None);
        if !rest.is_empty() {
            url.query_pairs_mut().extend_pairs(rest);
        }
        let Ok(mut config) = url.as_str().parse::<tokio_postgres::Config>() else {
            return fail("not an address of PostgreSQL, or one with an unknown parameter");
        };
        let local = config.get_hosts().iter().all(is_local);
        config.ssl_mode(match mode.as_deref() {
            None if local => SslMode::Disable,
            Some("disable") => SslMode::Disable,
            None | Some("require" | "verify-ca" | "verify-full") => SslMode::Require,
            Some("allow" | "prefer") => {
                return fail(
                    "sslmode must be disable or verify-full: the others are no protection",
                );
            }
            Some(_) => return fail("sslmode must be disable or verify-full"),
        });
        if let Some(p) = password {
            config.password(p);
        }
        config
            .application_name("observatory")
            .connect_timeout(Duration::from_secs(3))
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(Duration::from_secs(10))
            .options("-c statement_timeout=5000 -c idle_in_transaction_session_timeout=10000");
        Ok(Self { config, tls: tls(roots.as_deref().map(Path::new))? })
    }
}

fn tls(roots: Option<&Path>) -> Result<rustls::ClientConfig, SettingsError> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let Some(file) = roots else {
        // One per process; that another part set it is fine.
        let _ = rustls::crypto::CryptoProvider::install_default((*provider).clone());
        return rustls::ClientConfig::with_platform_verifier()
            .map_err(|e| SettingsError(format!("the machine's certificates: {e}")));
    };
    let bad = |e: String| SettingsError(format!("sslrootcert {}: {e}", file.display()));
    let mut store = rustls::RootCertStore::empty();
    for c in CertificateDer::pem_file_iter(file).map_err(|e| bad(e.to_string()))? {
        let c = c.map_err(|e| bad(e.to_string()))?;
        store.add(c).map_err(|e| bad(e.to_string()))?;
    }
    if store.is_empty() {
        return Err(bad("no certificate in it".into()));
    }
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad(e.to_string()))?;
    Ok(builder.with_root_certificates(store).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_strangers_are_reached_by_tls() {
        let mode = |a: &str| PostgresSettings::new(a, None).map(|s| s.config.get_ssl_mode());
        for (address, want) in [
            ("postgres://u:p@127.0.0.1/db", Ok(SslMode::Disable)),
            ("postgres://u@localhost:5433/db", Ok(SslMode::Disable)),
            ("postgres://u@db.example/db", Ok(SslMode::Require)),
            ("postgresql://u@db.example/db?sslmode=verify-full", Ok(SslMode::Require)),
            ("postgres://u@db.example/db?sslmode=disable", Ok(SslMode::Disable)),
            ("postgres://u@localhost/db?sslmode=require", Ok(SslMode::Require)),
        ] {
            assert_eq!(mode(address), want, "{address}");
        }
        for (address, want) in [
            ("mysql://u@h/db", "must begin with postgres://"),
            ("nonsense", "not an address"),
            ("postgres://u@h/db?sslmode=prefer", "no protection"),
            ("postgres://u:hunter2@h/db?colour=blue", "unknown parameter"),
            ("postgres://u@h/db?sslrootcert=/nowhere", "sslrootcert /nowhere"),
        ] {
            let e = mode(address).unwrap_err().to_string();
            assert!(e.contains(want) && !e.contains("hunter2"), "{address}: {e}");
        }
        let shown = PostgresSettings::new("postgres://u:hunter2@h/db", Some("hunter3")).unwrap();
        assert!(!format!("{shown:?}").contains("hunter"));
    }
}
