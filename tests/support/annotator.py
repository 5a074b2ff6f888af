"""Params of the scenes' simulated annotator."""

ANNOTATOR = {
    "words_per_second": 1.5,
    "points_per_second": 15.0,
    "loops_per_second": 0.8,
    "lag": 0.2,
    "lag_deviation": 0.3,
    "reach": 0.85,
    "reach_deviation": 0.25,
    "drift": 0.3,
    "jitter": 0.01,
    "wrong_object_fraction": 0.05,
    "noise": 1.0,
}
