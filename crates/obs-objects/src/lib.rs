//! Object stores by URL: Amazon S3 and what speaks its API, Google Cloud Storage, Azure Blob.
//!
//! Owns the adapter from the `object_store` crate to the port [`Objects`] of `obs-model`. Calls
//! block: they are made from threads that may wait, never from the runtime's own.

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{
    ClientOptions, Error, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, PutPayload,
    RetryConfig, WriteMultipart,
};
use obs_model::{Objects, ReadAt};
use std::io;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use url::Url;

/// Parts that a large object is sent in; bytes. Two are in memory at once.
const PART_BYTES: usize = 8 << 20;
/// How long one request may take, and all attempts at it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
const RETRY_TIMEOUT: Duration = Duration::from_secs(20);
const RETRIES: usize = 4;

/// A bucket, and the path in it below which all keys are.
struct Bucket {
    store: Box<dyn ObjectStore>,
    prefix: String,
    runtime: Handle,
}

impl std::fmt::Debug for Bucket {
    // Nothing of the store: it knows secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bucket").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// Makes TLS work for the HTTP clients of this process.
fn install_tls() {
    // The second call finds one installed, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Returns a client for HTTP and HTTPS; requests have no timeout but their own.
pub fn http_client() -> reqwest::Client {
    install_tls();
    reqwest::Client::new()
}

/// Returns whether a text is the URL of an object store rather than a path.
pub fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
    })
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() }
}

fn client() -> ClientOptions {
    ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(Duration::from_secs(3))
        .with_user_agent(http_agent())
}

fn http_agent() -> reqwest::header::HeaderValue {
    reqwest::header::HeaderValue::from_static(concat!("observatory/", env!("CARGO_PKG_VERSION")))
}

/// Applies settings of the environment that begin with `prefix`, then the options given.
fn configure<B, K: FromStr>(
    mut builder: B,
    prefix: &str,
    options: &[(String, String)],
    set: impl Fn(B, K, &str) -> B,
) -> Result<B, String> {
    for (name, value) in std::env::vars() {
        if name.starts_with(prefix)
            && let Ok(key) = name.to_ascii_lowercase().parse()
        {
            builder = set(builder, key, &value);
        }
    }
    for (name, value) in options {
        let key = name.to_ascii_lowercase().parse();
        let key = key.map_err(|_| format!("{name:?} is no option of this kind of store"))?;
        builder = set(builder, key, value);
    }
    Ok(builder)
}

/// Opens an object store: `s3://BUCKET/PATH`, `gs://BUCKET/PATH`, `az://CONTAINER/PATH` or the
/// providers' own https URLs. Credentials come from the usual environment variables
/// (`AWS_ACCESS_KEY_ID`, …), from `options` of the same names, or from the machine's role.
///
/// # Errors
/// When the URL or an option is not understood; nothing is sent yet.
pub fn open(
    url: &str,
    options: &[(String, String)],
    runtime: Handle,
) -> Result<Arc<dyn Objects>, String> {
    install_tls();
    let parsed = Url::parse(url).map_err(|e| format!("{url:?} is no URL: {e}"))?;
    let unknown =
        || format!("{url:?} names no object store; write s3://, gs:// or az://, bucket and path");
    let (scheme, path) = ObjectStoreScheme::parse(&parsed).map_err(|_| unknown())?;
    let store: Result<Box<dyn ObjectStore>, Error> = match scheme {
        ObjectStoreScheme::AmazonS3 => {
            let b = AmazonS3Builder::new().with_client_options(client()).with_retry(retry());
            let b = b.with_checksum_algorithm(Checksum::SHA256);
            let b =
                configure(b, "AWS_", options, |b, k: AmazonS3ConfigKey, v| b.with_config(k, v))?;
            b.with_url(url).build().map(|s| Box::new(s) as _)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let b =
                GoogleCloudStorageBuilder::new().with_client_options(client()).with_retry(retry());
            let set =
                |b: GoogleCloudStorageBuilder, k: GoogleConfigKey, v: &str| b.with_config(k, v);
            let b = configure(b, "GOOGLE_", options, set)?;
            b.with_url(url).build().map(|s| Box::new(s) as _)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let b = MicrosoftAzureBuilder::new().with_client_options(client()).with_retry(retry());
            let set = |b: MicrosoftAzureBuilder, k: AzureConfigKey, v: &str| b.with_config(k, v);
            let b = configure(b, "AZURE_", options, set)?;
            b.with_url(url).build().map(|s| Box::new(s) as _)
        }
        _ => return Err(unknown()),
    };
    let store = store.map_err(|e| without_query(&e.to_string()))?;
    Ok(Arc::new(Bucket { store, prefix: path.to_string(), runtime }))
}

/// Takes out what follows a `?` in URLs: signatures and tokens can be there.
fn without_query(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        match word.split_once('?') {
            Some((before, rest)) if before.contains("://") => {
                out.push_str(before);
                out.push_str("?…");
                out.extend(rest.chars().last().filter(|c| c.is_whitespace()));
            }
            _ => out.push_str(word),
        }
    }
    out
}

fn io_error(e: &Error) -> io::Error {
    let kind = match e {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            io::ErrorKind::PermissionDenied
        }
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("object store: {}", without_query(&e.to_string())))
}

impl Bucket {
    fn path(&self, key: &str) -> Path {
        if self.prefix.is_empty() {
            Path::from(key)
        } else {
            Path::from(format!("{}/{key}", self.prefix))
        }
    }

    async fn send(&self, path: &Path, len: u64, content: &dyn ReadAt) -> Result<(), Failure> {
        let read = |at: u64| -> io::Result<Bytes> {
            let n = usize::try_from(len - at).unwrap_or(usize::MAX).min(PART_BYTES);
            let mut part = BytesMut::zeroed(n);
            content.read_at(at, &mut part)?;
            Ok(part.freeze())
        };
        if len <= PART_BYTES as u64 {
            self.store.put(path, PutPayload::from_bytes(read(0)?)).await?;
            return Ok(());
        }
        let upload = self.store.put_multipart(path).await?;
        let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let mut at = 0;
        while at < len {
            let part = match read(at) {
                Ok(p) => p,
                Err(e) => {
                    let _ = parts.abort().await;
                    return Err(e.into());
                }
            };
            at += part.len() as u64;
            if let Err(e) = parts.wait_for_capacity(1).await {
                let _ = parts.abort().await;
                return Err(e.into());
            }
            parts.put(part);
        }
        // Failing, it takes back what was sent.
        parts.finish().await?;
        Ok(())
    }
}

/// Why an object was not sent: its source or its destination.
enum Failure {
    Source(io::Error),
    Store(Error),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Source(e)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Store(e)
    }
}

impl Objects for Bucket {
    fn put(&self, key: &str, len: u64, content: &dyn ReadAt) -> io::Result<()> {
        let path = self.path(key);
        self.runtime.block_on(async {
            self.send(&path, len, content).await.map_err(|e| match e {
                Failure::Source(e) => e,
                Failure::Store(e) => io_error(&e),
            })?;
            let there = self.store.head(&path).await.map_err(|e| io_error(&e))?;
            if there.size == len {
                return Ok(());
            }
            Err(io::Error::other(format!("object {key} has {} of {len} bytes", there.size)))
        })
    }

    fn read(&self, key: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        let want = range.end.saturating_sub(range.start);
        let path = self.path(key);
        let got = self.runtime.block_on(self.store.get_range(&path, range));
        let got = got.map_err(|e| io_error(&e))?;
        if got.len() as u64 == want {
            return Ok(got.into());
        }
        Err(io::Error::other(format!("object {key}: {} of {want} bytes came", got.len())))
    }

    fn remove(&self, key: &str) -> io::Result<()> {
        match self.runtime.block_on(self.store.delete(&self.path(key))) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(io_error(&e)),
        }
    }

    fn list(&self, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let path = self.path(folder.trim_end_matches('/'));
        let all: Result<Vec<_>, _> =
            self.runtime.block_on(self.store.list(Some(&path)).try_collect());
        let cut = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        let name = |p: &Path| p.as_ref().get(cut..).unwrap_or_default().to_owned();
        let all = all.map_err(|e| io_error(&e))?;
        let mut out: Vec<_> = all.iter().map(|o| (name(&o.location), o.size)).collect();
        out.sort();
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_told_from_paths() {
        for (text, want) in [("s3://b/p", true), ("/var/x", false), ("a/b", false), ("://x", false)]
        {
            assert_eq!(is_url(text), want, "{text}");
        }
    }

    #[test]
    fn tokens_in_urls_do_not_show() {
        let text = "get https://x.blob.core.windows.net/a?sig=SECRET failed: is it there?\n";
        let got = without_query(text);
        assert_eq!(got, "get https://x.blob.core.windows.net/a?… failed: is it there?\n");
    }

    #[test]
    fn what_is_no_object_store_is_refused_in_words() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let open = |url: &str, options: &[(&str, &str)]| {
            let options: Vec<_> = options.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            open(url, &options, runtime.handle().clone()).map(|_| ())
        };
        let own = [("aws_region", "eu-west-1")];
        assert_eq!(open("s3://bucket/p", &own), Ok(()));
        assert!(open("s3://bucket/p", &[("aws_reigon", "x")]).unwrap_err().contains("aws_reigon"));
        assert!(open("ftp://host/p", &[]).unwrap_err().contains("names no object store"));
        assert!(open("file:///x", &[]).unwrap_err().contains("names no object store"));
        assert!(open("s3:", &[]).is_err());
    }
}
