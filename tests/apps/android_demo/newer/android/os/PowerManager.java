// Written from Android's documentation: android.jar of API 23 has no thermal status. It has the rest.
package android.os;

public final class PowerManager {
    public boolean isPowerSaveMode() {
        throw new UnsupportedOperationException();
    }

    /** From API 29 on. */
    public int getCurrentThermalStatus() {
        throw new UnsupportedOperationException();
    }
}
