//! Route sets that are built in, one beside each rule pack that has one. Addresses and keys come
//! from the environment.

/// Name and text of each.
pub const PROFILES: [(&str, &str); 4] = [
    ("storage", include_str!("../profiles/storage.yml")),
    ("ai-platform", include_str!("../profiles/ai-platform.yml")),
    ("cost-ops", include_str!("../profiles/cost-ops.yml")),
    ("optimizer", include_str!("../profiles/optimizer.yml")),
];

/// Returns the text of a profile, or which ones there are.
///
/// # Errors
/// When there is none of the name.
pub fn profile(name: &str) -> Result<&'static str, String> {
    PROFILES.iter().find(|p| p.0 == name).map(|p| p.1).ok_or_else(|| {
        let known: Vec<&str> = PROFILES.iter().map(|p| p.0).collect();
        format!("{name:?} is no route set; there are {}", known.join(", "))
    })
}
