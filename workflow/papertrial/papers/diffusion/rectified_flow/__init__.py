"""Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow (2209.03003)."""
