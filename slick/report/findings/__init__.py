"""The findings of Gekhman et al. 2024, tested on a study."""
