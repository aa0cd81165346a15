//! TLS of the listeners.

use obs_collect::config::TlsConfig;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// How long a handshake, or a farewell, may take.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES_MAX: usize = 64;

/// Makes what answers TLS handshakes: a certificate and its key, and with a CA only clients that it
/// vouches for are let in; `strangers` says whether clients without a certificate are too. Files are
/// read now; paths are relative to `folder`.
///
/// # Errors
/// When something is missing or cannot be read.
pub(crate) fn acceptor(
    c: &TlsConfig,
    strangers: bool,
    folder: &Path,
) -> Result<TlsAcceptor, String> {
    let read = |text: &Option<String>, file: &Option<PathBuf>, what: &str| match (text, file) {
        (Some(t), _) => Ok(Some(t.clone().into_bytes())),
        (None, Some(f)) => {
            let path = folder.join(f);
            let bytes = std::fs::read(&path);
            bytes.map(Some).map_err(|e| format!("tls_config: {what} {}: {e}", path.display()))
        }
        (None, None) => Ok(None),
    };
    let needed = |v: Option<Vec<u8>>, what: &str| {
        v.ok_or_else(|| format!("tls_config: {what} is needed to receive over TLS"))
    };
    let wrong = |what: &str| format!("tls_config: {what} cannot be read as PEM");
    let certificates = |pem: &[u8], what: &str| {
        let all: Result<Vec<CertificateDer<'static>>, _> =
            CertificateDer::pem_slice_iter(pem).collect();
        all.ok().filter(|a| !a.is_empty()).ok_or_else(|| wrong(what))
    };
    let cert = needed(read(&c.cert, &c.cert_file, "cert_file")?, "cert_file")?;
    let key = needed(read(&c.key, &c.key_file, "key_file")?, "key_file")?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| wrong("key_file"))?;
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match read(&c.ca, &c.ca_file, "ca_file")? {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(&pem, "ca_file")? {
                roots.add(root).map_err(|e| format!("tls_config: ca_file: {e}"))?;
            }
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            if strangers {
                verifier = verifier.allow_unauthenticated();
            }
            builder.with_client_cert_verifier(verifier.build().map_err(|e| e.to_string())?)
        }
    };
    let chain = certificates(&cert, "cert_file")?;
    let config = builder.with_single_cert(chain, key);
    let config = config.map_err(|e| format!("tls_config: {e}"))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Answers one handshake.
pub(crate) async fn shake_hands(
    tls: &TlsAcceptor,
    socket: TcpStream,
) -> Result<TlsStream<TcpStream>, String> {
    let secure = tokio::time::timeout(HANDSHAKE, tls.accept(socket)).await;
    let secure = secure.map_err(|_| "no TLS handshake".to_owned())?;
    secure.map_err(|e| e.to_string())
}

/// Connections whose handshake is done; one that is slow holds no other up.
pub(crate) struct Secure {
    shaken: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    address: SocketAddr,
}

impl Secure {
    /// Accepts on `listener` until `stop`; the task ends when the listener is closed.
    pub(crate) fn over(
        listener: TcpListener,
        tls: TlsAcceptor,
        stop: CancellationToken,
    ) -> io::Result<(Self, JoinHandle<()>)> {
        let address = listener.local_addr()?;
        let (to, shaken) = mpsc::channel(1);
        let accepting = async move {
            let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
            loop {
                let Ok(place) = places.clone().acquire_owned().await else { return };
                let Ok((socket, peer)) = listener.accept().await else {
                    // Out of files, most likely: others must close first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let (tls, to) = (tls.clone(), to.clone());
                tokio::spawn(async move {
                    match shake_hands(&tls, socket).await {
                        Ok(secure) => drop(to.send((secure, peer)).await),
                        Err(e) => tracing::warn!(peer = %peer, error = e, "connection closed"),
                    }
                    drop(place);
                });
            }
        };
        let task = async move {
            tokio::select! {
                () = accepting => {}
                () = stop.cancelled() => {}
            }
        };
        Ok((Self { shaken, address }, tokio::spawn(task)))
    }
}

impl axum::serve::Listener for Secure {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.shaken.recv().await {
            Some(one) => one,
            // Stopped: whoever asks is about to stop too.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
